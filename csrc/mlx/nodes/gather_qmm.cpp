#include "csrc/mlx/nodes/gather_qmm.h"

#include <optional>

#include "csrc/core/error.h"
#include "csrc/core/planner.h"
#include "csrc/cpu/gather.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/nodes/group_gradient.h"
#include "csrc/mlx/nodes/quantized_rows.h"
#include "csrc/mlx/nodes/transforms.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

using bridge::QuantizedRows;
using bridge::RowContiguous;

// [dims..., a, b] as [product of dims, a, b].
mx::array as_matrices(const mx::array& a, const mx::Stream& s) {
  return mx::reshape(a, {-1, a.shape(-2), a.shape(-1)}, s);
}

}  // namespace

void GatherQmm::eval_cpu(const std::vector<mx::array>& inputs,
                         std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  GatherProblem p = problem(inputs);
  cpu_task::dispatch(stream(),
                     outputs,
                     [p,
                      plan = bridge::cpu_plan(p, options_),
                      x = RowContiguous(inputs[kX]),
                      w = QuantizedRows(inputs, kW),
                      lhs = RowContiguous(inputs[kLhs]),
                      rhs = RowContiguous(inputs[kRhs]),
                      y = out.data<void>()]() mutable {
                       cpu::gather_matmul(
                           p,
                           plan,
                           {w.operands(), x.data(), y},
                           {lhs.as<uint32_t>(), rhs.as<uint32_t>()});
                     });
}

void GatherQmm::eval_gpu(const std::vector<mx::array>& inputs,
                         std::vector<mx::array>& outputs) {
  if (evaluation::is_empty(outputs[0])) {
    return;
  }
  evaluation::run_on_gpu(
      "gather_qmm",
      plans::plan(problem(inputs), executor::device_profile(stream().device)),
      {Operand::kX,
       Operand::kWeight,
       Operand::kScales,
       Operand::kBiases,
       Operand::kLhsIndices,
       Operand::kRhsIndices},
      inputs,
      outputs[0],
      stream());
}

GatherProblem GatherQmm::problem(const std::vector<mx::array>& inputs) const {
  return bridge::gather_problem(inputs[kX],
                                inputs[kW],
                                inputs[kScales],
                                inputs[kLhs],
                                format_,
                                transpose_,
                                sorted_,
                                options_.batch_invariant);
}

mx::array GatherQmm::apply(const std::vector<mx::array>& inputs,
                           const ops::MatmulOptions& options) {
  return ops::gather_qmm(
      inputs[kX],
      ops::QuantizedArrays::of(
          format_, inputs[kW], inputs[kScales], inputs[kBiases]),
      {inputs[kLhs], inputs[kRhs], sorted_},
      transpose_,
      ops::QuantArgs::of(format_),
      options,
      stream());
}

std::vector<mx::array> GatherQmm::jvp(const std::vector<mx::array>& inputs,
                                      const std::vector<mx::array>& tangents,
                                      const std::vector<int>& argnums) {
  std::vector<mx::array> primals = repack::unpacked(inputs, kW);
  // y is linear in x, and linear in (scales, biases) together.
  mx::array zeros = mx::zeros_like(primals[kScales], stream());
  std::vector<mx::array> moved_x = primals, moved_w = primals;
  moved_w[kScales] = moved_w[kBiases] = zeros;
  bool x_moves = false, w_moves = false;
  for (size_t i = 0; i < argnums.size(); ++i) {
    int arg = argnums[i];
    require(arg == kX || arg == kScales || arg == kBiases,
            "GatherQmm::jvp",
            "packed weights and indices are integers: they have no tangent");
    (arg == kX ? moved_x : moved_w)[arg] = tangents[i];
    (arg == kX ? x_moves : w_moves) = true;
  }
  if (!w_moves) {
    return {apply(moved_x, options_)};
  }
  ops::MatmulOptions general = options_;
  general.symmetric = false;  // the tangents may be any
  mx::array dy = apply(moved_w, general);
  return {x_moves ? mx::add(dy, apply(moved_x, options_), stream()) : dy};
}

std::vector<mx::array> GatherQmm::vjp(const std::vector<mx::array>& inputs,
                                      const std::vector<mx::array>& cotangents,
                                      const std::vector<int>& argnums,
                                      const std::vector<mx::array>&) {
  std::vector<mx::array> primals = repack::unpacked(inputs, kW);
  const mx::Stream& s = stream();
  const mx::array& dy = cotangents[0];
  auto x_gradient = [&] {
    mx::array parts = ops::gather_qmm(
        dy,
        ops::QuantizedArrays::of(
            format_, primals[kW], primals[kScales], primals[kBiases]),
        {std::nullopt, primals[kRhs], sorted_},
        !transpose_,
        ops::QuantArgs::of(format_),
        options_,
        s);
    parts = mx::astype(as_matrices(parts, s), mx::float32, s);
    const mx::array& x = primals[kX];
    mx::array sums = mx::zeros(as_matrices(x, s).shape(), mx::float32, s);
    mx::array dx = mx::scatter_add(sums,
                                   mx::flatten(primals[kLhs], 0, -1, s),
                                   mx::expand_dims(parts, 1, s),
                                   0,
                                   s);
    return mx::astype(mx::reshape(dx, x.shape(), s), x.dtype(), s);
  };
  std::optional<GroupGradients> groups;
  auto group_gradient = [&]() -> const GroupGradients& {
    if (!groups) {
      groups = GroupGradient::of(
          {primals[kX], dy, primals[kW], primals[kLhs], primals[kRhs]},
          {format_, transpose_, true},
          s);
    }
    return *groups;
  };
  std::vector<mx::array> gradients;
  for (int arg : argnums) {
    require(arg == kX || arg == kScales || arg == kBiases,
            "GatherQmm::vjp",
            "packed weights and indices are integers: they have no gradient");
    mx::array gradient = arg == kX        ? x_gradient()
                         : arg == kScales ? group_gradient().scales
                                          : group_gradient().biases;
    gradients.push_back(mx::astype(gradient, primals[arg].dtype(), s));
  }
  return gradients;
}

std::pair<std::vector<mx::array>, std::vector<int>> GatherQmm::vmap(
    const std::vector<mx::array>& given, const std::vector<int>& axes) {
  std::vector<mx::array> inputs = repack::unpacked(given, kW);
  const mx::Stream& s = stream();
  int size = mapped_size(inputs, axes);
  // The mapped axis becomes one more dimension of matrices to choose from.
  bool weights_mapped =
      axes[kW] >= 0 || axes[kScales] >= 0 || axes[kBiases] >= 0;
  std::vector<mx::array> all = inputs;
  if (axes[kX] >= 0) {
    all[kX] = to_front(inputs[kX], axes[kX], size, s);
  }
  for (int i : {kW, kScales, kBiases}) {
    if (weights_mapped) {
      all[i] = to_front(inputs[i], axes[i], size, s);
    }
  }
  auto indices = [&](int i, const mx::array& of, bool mapped) {
    mx::array own = to_front(inputs[i], axes[i], size, s);
    if (!mapped) {
      return own;
    }
    auto each =
        static_cast<int>(of.size() / of.shape(-1) / of.shape(-2) / size);
    mx::array first = mx::multiply(mx::arange(0, size, mx::uint32, s),
                                   mx::array(static_cast<uint32_t>(each)),
                                   s);
    return mx::add(own, pad_batch(first, own.ndim(), s), s);
  };
  all[kLhs] = indices(kLhs, all[kX], axes[kX] >= 0);
  all[kRhs] = indices(kRhs, all[kW], weights_mapped);
  return {{apply(all, options_)}, {0}};
}

bool GatherQmm::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const GatherQmm&>(other);
  return format_ == o.format_ && transpose_ == o.transpose_ &&
         sorted_ == o.sorted_ && options_ == o.options_;
}

std::vector<mx::Shape> GatherQmm::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[kLhs].shape();
  shape.push_back(inputs[kX].shape(-2));
  shape.push_back(transpose_ ? inputs[kW].shape(-2)
                             : inputs[kScales].shape(-1) * format_.group_size);
  return {shape};
}

}  // namespace nibble
