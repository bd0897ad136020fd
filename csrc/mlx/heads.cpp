#include "csrc/mlx/heads.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "csrc/core/error.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/tuning.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::to_dtype;
using graph::is_constant;
using graph::is_pending;

namespace {

// What a projection computes, once all arrays have memory.
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
        y_(out.data<void>()) {
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
      rows_ = {y_, {out.shape(0), heads, L}, {L * row, D, row}};
      D_ = D;
    }
  }

  void run(const void* x) {
    cpu::matmul(
        problem_,
        plan_,
        {w_.operands(problem_), x, y_, bias_ ? bias_->data() : nullptr});
    if (projection_.norm_eps) {
      cpu::RmsNorm norm{D_,
                        *projection_.norm_eps,
                        problem_.dtype,
                        norm_weight_dtype_,
                        problem_.dtype};
      // In memory the rows of a position's heads follow each other.
      cpu::RowGrid rows{y_,
                        {rows_.shape[0], rows_.shape[2], rows_.shape[1]},
                        {rows_.strides[0], rows_.strides[2], D_}};
      cpu::rms_norm(
          norm, rows, norm_weight_ ? norm_weight_->data() : nullptr, y_);
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
                y_);
    }
  }

 private:
  Projection projection_;
  MatmulProblem problem_;
  CpuPlan plan_;
  bridge::QuantizedRows w_;
  std::optional<RowContiguous> bias_, norm_weight_, offsets_, periods_;
  Dtype norm_weight_dtype_ = Dtype::kFloat32;
  bool one_each_ = false;
  cpu::RowGrid rows_{};
  int D_ = 0;
  void* y_;
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
        for (ProjectionTask& task : tasks) {
          task.run(x.data());
        }
      });
}

void ProjectedHeads::eval_gpu(const std::vector<mx::array>&,
                              std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

namespace fusion {
namespace {

// A projection found in a graph.
struct Found {
  mx::array x;
  mx::array top;  // what the projection computes
  Projection projection;
  std::vector<mx::array> constants;  // its inputs beside x
};

// The product itself; nullopt unless it is ours, with weights that are there.
std::optional<Found> product(const mx::array& a) {
  if (!is_pending(a, QuantizedMatmul::kName) || a.ndim() != 3) {
    return std::nullopt;
  }
  const auto& primitive = static_cast<const QuantizedMatmul&>(a.primitive());
  const std::vector<mx::array>& inputs = a.inputs();
  bool simple = primitive.transpose() && !primitive.epilogue().residual &&
                inputs[1].ndim() == 2 &&
                std::all_of(inputs.begin() + 1, inputs.end(), is_constant);
  if (!simple) {
    return std::nullopt;
  }
  Projection projection{.format = primitive.format(),
                        .options = primitive.options(),
                        .epilogue = primitive.epilogue()};
  return Found{inputs[0], a, projection, {inputs.begin() + 1, inputs.end()}};
}

// The heads that `a` is, as far as they come from a product in the order that
// ProjectedHeads computes in; nullopt if they do not.
std::optional<Found> whole_heads(const mx::array& a) {
  if (a.ndim() != 4) {
    return std::nullopt;
  }
  const mx::array* at = &a;
  Projection wanted;
  std::vector<mx::array> constants;
  auto take_constants = [&](const mx::array& node) {
    const auto& inputs = node.inputs();
    constants.insert(constants.begin(), inputs.begin() + 1, inputs.end());
    return std::all_of(inputs.begin() + 1, inputs.end(), is_constant);
  };
  auto take_norm = [&] {
    if (wanted.norm_eps || !is_pending(*at, RmsNormPrimitive::kName)) {
      return true;
    }
    wanted.norm_eps =
        static_cast<const RmsNormPrimitive&>(at->primitive()).options();
    wanted.has_norm_weight = at->inputs().size() > 1;
    bool fits = take_constants(*at) && at->dtype() == a.dtype();
    at = &at->inputs()[0];
    return fits;
  };
  if (is_pending(*at, RopePrimitive::kName)) {
    wanted.rope = static_cast<const RopePrimitive&>(at->primitive()).options();
    if (!take_constants(*at)) {
      return std::nullopt;
    }
    at = &at->inputs()[0];
  }
  if (!take_norm() || !is_pending(*at, "Transpose") ||
      static_cast<const mx::Transpose&>(at->primitive()).state() !=
          std::vector<int>{0, 2, 1, 3}) {
    return std::nullopt;
  }
  at = &at->inputs()[0];
  if (!take_norm() || !is_pending(*at, "Reshape")) {
    return std::nullopt;
  }
  int B = a.shape(0), H = a.shape(1), L = a.shape(2), D = a.shape(3);
  auto found = product(at->inputs()[0]);
  if (!found || found->top.shape() != mx::Shape{B, L, H * D} ||
      found->top.dtype() != a.dtype()) {
    return std::nullopt;
  }
  wanted.format = found->projection.format;
  wanted.options = found->projection.options;
  wanted.epilogue = found->projection.epilogue;
  wanted.heads = H;
  found->projection = wanted;
  found->top = a;
  found->constants.insert(
      found->constants.end(), constants.begin(), constants.end());
  return found;
}

std::optional<Found> projection(const mx::array& heads) {
  const mx::array* at = &heads;
  if (is_pending(*at, "Slice")) {  // what the cache holds so far
    at = &at->inputs()[0];
  }
  if (is_pending(*at, "SliceUpdate")) {
    at = &at->inputs()[1];
  }
  if (auto found = whole_heads(*at)) {
    return found;
  }
  auto is_step = [](const mx::array& node) {
    for (const char* name : {RopePrimitive::kName,
                             RmsNormPrimitive::kName,
                             "Transpose",
                             "Reshape"}) {
      if (is_pending(node, name)) {
        return true;
      }
    }
    return false;
  };
  while (is_step(*at)) {
    at = &at->inputs()[0];
  }
  return product(*at);
}

}  // namespace

void join_heads(const mx::array& q, const mx::array& k, const mx::array& v) {
  std::vector<Found> found;
  for (const mx::array& heads : {q, k, v}) {
    auto here = projection(heads);
    if (!here) {
      return;
    }
    found.push_back(*std::move(here));
  }
  const mx::Stream& stream = found[0].top.primitive().stream();
  std::vector<mx::array> outputs, inputs = {found[0].x};
  std::vector<Projection> projections;
  for (Found& f : found) {
    // Values that are keys, of one matrix, would be computed twice.
    for (size_t first = 1; first < inputs.size(); ++first) {
      if (inputs[first].id() == f.constants[0].id()) {
        return;
      }
    }
    if (f.x.id() != inputs[0].id() || f.top.primitive().stream() != stream) {
      return;
    }
    outputs.push_back(f.top);
    projections.push_back(f.projection);
    inputs.insert(inputs.end(), f.constants.begin(), f.constants.end());
  }
  graph::become(
      outputs,
      std::make_shared<ProjectedHeads>(stream, std::move(projections)),
      inputs);
}

}  // namespace fusion

}  // namespace nibble
