#include "csrc/mlx/nodes/group_gradient.h"

#include <memory>

#include "csrc/cpu/gradient.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/plans.h"
#include "mlx/allocator.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace nibble {
namespace {

using bridge::RowContiguous;

// `a` in float32, its leading dimensions as one.
mx::array float_matrices(const mx::array& a, const mx::Stream& s) {
  return mx::astype(
      mx::reshape(a, {-1, a.shape(-2), a.shape(-1)}, s), mx::float32, s);
}

}  // namespace

bool GroupGradient::is_ours(const std::vector<mx::array>& inputs,
                            const GradientOptions& options,
                            const mx::Stream& s) {
  GroupGradient node(s, options);
  return options.gathered
             ? decision::gradient_is_ours(node.gather_problem(inputs), s.device)
             : decision::gradient_is_ours(node.matmul_problem(inputs),
                                          s.device);
}

GroupGradients GroupGradient::of(const std::vector<mx::array>& given,
                                 const GradientOptions& options,
                                 const mx::Stream& s) {
  require_biases(options.format);
  auto node = std::make_shared<GroupGradient>(s, options);
  std::vector<mx::array> inputs = given;
  bool ours = is_ours(inputs, options, s);
  if (ours && options.gathered && s.device == mx::Device::gpu) {
    inputs.push_back(mx::argsort(mx::flatten(inputs[kRhs], s), s));
  }
  mx::array both =
      ours
          ? mx::array(node->output_shapes(inputs)[0], mx::float32, node, inputs)
          : node->by_mlx(inputs);
  return {mx::take(both, 0, 0, s), mx::take(both, 1, 0, s)};
}

MatmulProblem GroupGradient::matmul_problem(
    const std::vector<mx::array>& inputs) const {
  const mx::array &x = inputs[kX], &w = inputs[kW];
  MatmulProblem p{product_of(inputs)};
  if (w.ndim() == 2) {
    p.M = x.shape(-1) == 0 ? 0 : static_cast<int>(x.size() / x.shape(-1));
  } else {
    p.M = x.shape(-2);
    p.batch = *bridge::match_batch(bridge::batch_shape(x.shape()),
                                   bridge::batch_shape(w.shape()));
  }
  return p;
}

GatherProblem GroupGradient::gather_problem(
    const std::vector<mx::array>& inputs) const {
  auto count = [](const mx::array& a) {
    size_t matrix = size_t(a.shape(-1)) * a.shape(-2);
    return matrix == 0 ? 0 : static_cast<int>(a.size() / matrix);
  };
  GatherProblem p{product_of(inputs)};
  p.M = inputs[kX].shape(-2);
  p.B = static_cast<int>(inputs[kLhs].size());
  p.experts = count(inputs[kW]);
  p.rows = count(inputs[kX]);
  return p;
}

Product GroupGradient::product_of(const std::vector<mx::array>& inputs) const {
  Product p;
  p.dtype = *bridge::to_dtype(inputs[kX].dtype());
  p.format = options().format;
  p.N = inputs[kW].shape(-2);
  p.K = columns(inputs);
  p.transpose = options().transpose;
  return p;
}

void GroupGradient::eval_gpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  DeviceProfile device = executor::device_profile(stream().device);
  std::vector<Operand> operands{Operand::kX, Operand::kDy, Operand::kWeight};
  plans::Plan launches;
  if (options().gathered) {
    operands.insert(
        operands.end(),
        {Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOrder});
    launches = plans::plan_gradient(gather_problem(inputs), device);
  } else {
    launches = plans::plan_gradient(matmul_problem(inputs), device);
  }
  evaluation::run_on_gpu(
      "vjp", launches, operands, inputs, outputs[0], stream());
}

void GroupGradient::eval_cpu(const std::vector<mx::array>& inputs,
                             std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  auto operands = [x = RowContiguous(inputs[kX]),
                   dy = RowContiguous(inputs[kDy]),
                   w = RowContiguous(inputs[kW]),
                   scales = out.data<float>(),
                   half = out.size() / 2]() mutable {
    return cpu::GradientOperands{
        w.as<uint32_t>(), x.data(), dy.data(), scales, scales + half};
  };
  if (!options().gathered) {
    cpu_task::dispatch(
        stream(), outputs, [p = matmul_problem(inputs), operands]() mutable {
          cpu::group_gradients(p, cpu::rows_by_matrix(p), operands());
        });
    return;
  }
  cpu_task::dispatch(
      stream(),
      outputs,
      [p = gather_problem(inputs),
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

bool trains_groups(const std::vector<mx::array>& inputs, QuantFormat format) {
  return format.info().stores_biases &&
         (inputs[2].is_tracer() || inputs[3].is_tracer());
}

mx::array with_gradients_of(const std::shared_ptr<mx::Primitive>& node,
                            const std::vector<mx::array>& inputs,
                            const mx::array& y) {
  using Arrays = std::vector<mx::array>;
  auto forward = [&](const Arrays&) { return Arrays{y}; };
  auto gradients = [node](const Arrays& primals,
                          const Arrays& cotangents,
                          const Arrays& outputs) {
    // Integers, which nobody asks for, are the inputs 1 and, of experts, 4 and
    // 5.
    Arrays given = node->vjp(primals, cotangents, {0, 2, 3}, outputs);
    Arrays all{given[0], mx::zeros_like(primals[1]), given[1], given[2]};
    for (size_t i = all.size(); i < primals.size(); ++i) {
      all.push_back(mx::zeros_like(primals[i]));
    }
    return all;
  };
  return mx::custom_vjp(forward, gradients)(inputs)[0];
}

}  // namespace nibble
