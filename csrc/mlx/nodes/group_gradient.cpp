#include "csrc/mlx/nodes/group_gradient.h"

#include <memory>

#include "csrc/cpu/gradient.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/allocator.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

using bridge::RowContiguous;

// `a` in float32, its leading dimensions as one.
mx::array float_matrices(const mx::array& a, const mx::Stream& s) {
  return mx::astype(
      mx::reshape(a, {-1, a.shape(-2), a.shape(-1)}, s), mx::float32, s);
}

// The fields of a product that do not depend on x's leading dimensions.
Product product_of(const std::vector<mx::array>& inputs,
                   const GradientOptions& options,
                   int columns) {
  Product p;
  p.dtype = *bridge::to_dtype(inputs[GroupGradient::kX].dtype());
  p.format = options.format;
  p.N = inputs[GroupGradient::kW].shape(-2);
  p.K = columns;
  p.transpose = options.transpose;
  return p;
}

}  // namespace

GroupGradients GroupGradient::of(const std::vector<mx::array>& inputs,
                                 const GradientOptions& options,
                                 const mx::Stream& s) {
  require_biases(options.format);
  auto node = std::make_shared<GroupGradient>(s, options);
  mx::array both =
      s.device == mx::Device::cpu
          ? mx::array(node->output_shapes(inputs)[0], mx::float32, node, inputs)
          : node->by_mlx(inputs);
  return {mx::take(both, 0, 0, s), mx::take(both, 1, 0, s)};
}

void GroupGradient::eval_cpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  const mx::array &x = inputs[kX], &w = inputs[kW];
  Product product = product_of(inputs, options(), columns(inputs));
  auto operands = [x = RowContiguous(x),
                   dy = RowContiguous(inputs[kDy]),
                   w = RowContiguous(w),
                   scales = out.data<float>(),
                   half = out.size() / 2]() mutable {
    return cpu::GradientOperands{
        w.as<uint32_t>(), x.data(), dy.data(), scales, scales + half};
  };
  if (!options().gathered) {
    MatmulProblem p{product};
    if (w.ndim() == 2) {
      p.M = x.shape(-1) == 0 ? 0 : static_cast<int>(x.size() / x.shape(-1));
    } else {
      p.M = x.shape(-2);
      p.batch = *bridge::match_batch(bridge::batch_shape(x.shape()),
                                     bridge::batch_shape(w.shape()));
    }
    cpu_task::dispatch(stream(), outputs, [p, operands]() mutable {
      cpu::group_gradients(p, cpu::rows_by_matrix(p), operands());
    });
    return;
  }
  auto count = [](const mx::array& a) {
    size_t matrix = size_t(a.shape(-1)) * a.shape(-2);
    return matrix == 0 ? 0 : static_cast<int>(a.size() / matrix);
  };
  GatherProblem p{product};
  p.M = x.shape(-2);
  p.B = static_cast<int>(inputs[kLhs].size());
  p.experts = count(w);
  p.rows = count(x);
  cpu_task::dispatch(
      stream(),
      outputs,
      [p,
       operands,
       lhs = RowContiguous(inputs[kLhs]),
       rhs = RowContiguous(inputs[kRhs])]() mutable {
        cpu::Indices indices{lhs.as<uint32_t>(), rhs.as<uint32_t>()};
        cpu::group_gradients(p, cpu::rows_by_matrix(p, indices), operands());
      });
}

mx::array GroupGradient::by_mlx(const std::vector<mx::array>& inputs) {
  mx::array dw = options().gathered ? dense_of_experts(inputs) : dense(inputs);
  GroupGradients groups =
      group_gradients(dw, inputs[kW], options().format, stream());
  return mx::stack({groups.scales, groups.biases}, 0, stream());
}

mx::array GroupGradient::dense(const std::vector<mx::array>& inputs) {
  const mx::Stream& s = stream();
  const mx::array& w = inputs[kW];
  auto matrix = [&](Input i) {
    mx::array f = mx::astype(inputs[i], mx::float32, s);
    return w.ndim() == 2 ? mx::reshape(f, {-1, f.shape(-1)}, s) : f;
  };
  bool transpose = options().transpose;
  mx::array left = mx::swapaxes(matrix(transpose ? kDy : kX), -1, -2, s);
  mx::Shape shape = w.shape();
  shape.back() = columns(inputs);
  return sum_to(mx::matmul(left, matrix(transpose ? kX : kDy), s), shape, s);
}

mx::array GroupGradient::dense_of_experts(
    const std::vector<mx::array>& inputs) {
  const mx::Stream& s = stream();
  const mx::array& w = inputs[kW];
  mx::array lhs = mx::flatten(inputs[kLhs], 0, -1, s);
  mx::array rhs = mx::flatten(inputs[kRhs], 0, -1, s);
  mx::array x = mx::take(float_matrices(inputs[kX], s), lhs, 0, s);
  mx::array dy = float_matrices(inputs[kDy], s);
  int M = x.shape(1);
  bool transpose = options().transpose;
  mx::array left = mx::flatten(transpose ? dy : x, 0, 1, s);  // [B * M, N]
  mx::array right = mx::flatten(transpose ? x : dy, 0, 1, s);
  // left^T for each expert, with the rows of the others masked. It is no larger
  // than the products of single rows, whose sum we need.
  int experts = static_cast<int>(w.size() / w.shape(-1) / w.shape(-2));
  mx::array mine =
      mx::equal(mx::expand_dims(mx::repeat(rhs, M, 0, s), 0, s),
                mx::expand_dims(mx::arange(0, experts, mx::uint32, s), 1, s),
                s);  // [experts, B * M]
  mx::array masked = mx::multiply(mx::expand_dims(mine, 1, s),
                                  mx::expand_dims(mx::transpose(left, s), 0, s),
                                  s);
  mx::Shape shape = w.shape();
  shape.back() = columns(inputs);
  return mx::reshape(mx::matmul(masked, right, s), shape, s);
}

std::vector<mx::Shape> GroupGradient::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[kW].shape();
  shape.back() = columns(inputs) / options().format.group_size;
  shape.insert(shape.begin(), 2);
  return {shape};
}

}  // namespace nibble
