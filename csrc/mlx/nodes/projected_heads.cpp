#include "csrc/mlx/nodes/projected_heads.h"

#include <utility>

#include "csrc/core/error.h"
#include "csrc/cpu/layer_kernels.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/nodes/quantized_rows.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::to_dtype;

namespace {

// The work of a projection. All arrays have memory when it is constructed.
class ProjectionTask {
 public:
  ProjectionTask(const Projection& projection,
                 const std::vector<mx::array>& inputs,
                 size_t first,
                 mx::array& out)
      : projection_(projection),
        problem_(bridge::matmul_problem(inputs[0],
                                        inputs[first],
                                        inputs[first + 1],
                                        projection.format,
                                        true)),
        w_(inputs, static_cast<int>(first)),
        out_dtype_(*to_dtype(out.dtype())),
        out_(out.data<void>()),
        size_(out.size()) {
    size_t next = first + 3;
    problem_.epilogue = projection.epilogue;
    tuning::consult(problem_, projection.options, mx::Device::cpu);
    plan_ = bridge::cpu_plan(problem_, projection.options);
    if (projection.epilogue.bias) {
      bias_.emplace(inputs[next++]);
    }
    if (projection.has_norm_weight) {
      norm_weight_dtype_ = *to_dtype(inputs[next].dtype());
      norm_weight_.emplace(inputs[next++]);
    }
    if (projection.rope && projection.rope->has_offsets) {
      one_each_ = inputs[next].size() > 1;
      offsets_.emplace(inputs[next++]);
    }
    if (projection.rope && projection.rope->has_periods) {
      periods_.emplace(inputs[next++]);
    }
    if (projection.heads > 0) {
      int D = out.shape(3), L = out.shape(2), heads = projection.heads;
      int64_t row = int64_t{heads} * D;
      rows_ = {nullptr, {out.shape(0), heads, L}, {L * row, D, row}};
      D_ = D;
    }
  }

  // The product of x, in the type of x.
  cpu::PlannedMatmul product(const void* x) {
    if (out_dtype_ != problem_.dtype) {
      wide_.resize(size_ + cpu::kMaxLanes);
    }
    return {problem_,
            plan_,
            {w_.operands(), x, y(), bias_ ? bias_->data() : nullptr}};
  }

  // The steps after the product.
  void finish() {
    rows_.data = y();
    if (projection_.norm_eps) {
      cpu::RmsNorm norm{D_,
                        *projection_.norm_eps,
                        problem_.dtype,
                        norm_weight_dtype_,
                        problem_.dtype};
      // In memory, the heads of one position are consecutive rows.
      cpu::RowGrid rows{y(),
                        {rows_.shape[0], rows_.shape[2], rows_.shape[1]},
                        {rows_.strides[0], rows_.strides[2], D_}};
      cpu::rms_norm(
          norm, rows, norm_weight_ ? norm_weight_->data() : nullptr, y());
    }
    if (projection_.rope) {
      const RopeOptions& o = *projection_.rope;
      cpu::Rope rope{D_,
                     o.dims,
                     o.traditional,
                     o.scale,
                     problem_.dtype,
                     o.base,
                     periods_ ? periods_->as<float>() : nullptr};
      cpu::rope(rope,
                rows_,
                offsets_ ? offsets_->as<int32_t>() : &o.offset,
                one_each_,
                rows_.strides,
                y());
    }
    if (!wide_.empty()) {
      cpu::round(out_dtype_, wide_.data(), size_, out_);
      wide_ = {};
    }
  }

  void* y() { return wide_.empty() ? out_ : wide_.data(); }

  Projection projection_;
  MatmulProblem problem_;
  CpuPlan plan_;
  bridge::QuantizedRows w_;
  std::optional<RowContiguous> bias_, norm_weight_, offsets_, periods_;
  Dtype norm_weight_dtype_ = Dtype::kFloat32;
  bool one_each_ = false;
  cpu::RowGrid rows_{};
  int D_ = 0;
  Dtype out_dtype_;
  void* out_;
  size_t size_;
  std::vector<float> wide_;  // the product, if the output has another type
};

size_t input_count(const Projection& p) {
  return 3 + p.epilogue.bias + p.has_norm_weight +
         (p.rope ? p.rope->has_offsets + p.rope->has_periods : 0);
}

}  // namespace

void ProjectedHeads::eval_cpu(const std::vector<mx::array>& inputs,
                              std::vector<mx::array>& outputs) {
  std::vector<ProjectionTask> tasks;
  tasks.reserve(projections_.size());
  size_t first = 1;
  for (size_t i = 0; i < projections_.size(); ++i) {
    if (projections_[i].heads > 0) {
      bridge::give_head_memory(outputs[i]);
    } else {
      outputs[i].set_data(mx::allocator::malloc(outputs[i].nbytes()));
    }
    tasks.emplace_back(projections_[i], inputs, first, outputs[i]);
    first += input_count(projections_[i]);
  }
  cpu_task::dispatch(
      stream(),
      outputs,
      [x = RowContiguous(inputs[0]), tasks = std::move(tasks)]() mutable {
        std::vector<cpu::PlannedMatmul> products;
        for (ProjectionTask& task : tasks) {
          products.push_back(task.product(x.data()));
        }
        cpu::matmuls(products);
        for (ProjectionTask& task : tasks) {
          task.finish();
        }
      });
}

void ProjectedHeads::eval_gpu(const std::vector<mx::array>&,
                              std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

}  // namespace nibble
