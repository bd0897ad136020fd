#include "csrc/mlx/nodes/attention_gradient.h"

#include <limits>
#include <memory>

#include "csrc/cpu/attention_gradient.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/allocator.h"
#include "mlx/fast.h"
#include "mlx/ops.h"
#include "mlx/transforms.h"

namespace nibble {
namespace {

enum Input { kQ, kK, kV, kDy };

// The kernel's products read whole vectors.
constexpr int kMultiple = 16;

cpu::AttentionGradient problem_of(const std::vector<mx::array>& inputs,
                                  const AttentionGradientOptions& options) {
  const mx::array &q = inputs[kQ], &k = inputs[kK];
  return {q.shape(0),
          q.shape(1),
          k.shape(1),
          q.shape(2),
          k.shape(2),
          q.shape(3),
          inputs[kV].shape(3),
          options.scale,
          options.causal};
}

// The elements of dq, of dk and of dv.
struct Sizes {
  int q, k, v;

  explicit Sizes(const cpu::AttentionGradient& p)
      : q(p.B * p.heads * p.L * p.D),
        k(p.B * p.heads * p.S * p.D),
        v(p.B * p.heads * p.S * p.Dv) {}
};

}  // namespace

std::optional<std::vector<mx::array>> AttentionGradientNode::of(
    const std::vector<mx::array>& inputs,
    const mx::array& dy,
    const AttentionOptions& options,
    const mx::Stream& s) {
  const mx::array &q = inputs[kQ], &k = inputs[kK], &v = inputs[kV];
  bool fits = q.shape(-1) % kMultiple == 0 && v.shape(-1) % kMultiple == 0;
  int64_t keys = int64_t{k.shape(2)} * (k.shape(3) + v.shape(3));
  int64_t size = int64_t{q.shape(0)} * q.shape(1) *
                 (keys + int64_t{q.shape(2)} * q.shape(3));
  fits &= size <= std::numeric_limits<int>::max();
  if (!fits || options.has_mask || options.has_sinks || options.keys != 0 ||
      options.cap != 0) {
    return std::nullopt;
  }
  auto prepared = [&](const mx::array& a) {
    return mx::contiguous(mx::astype(a, mx::float32, s), false, s);
  };
  mx::array gradient = dy;
  if (options.flat) {
    gradient = mx::swapaxes(
        mx::unflatten(dy, -1, {q.shape(1), v.shape(-1)}, s), 1, 2, s);
  }
  std::vector<mx::array> given{
      prepared(q), prepared(k), prepared(v), prepared(gradient)};
  auto node = std::make_shared<AttentionGradientNode>(
      s, AttentionGradientOptions{options.scale, options.causal});
  cpu::AttentionGradient p = problem_of(given, node->options());
  mx::array all(node->output_shapes(given)[0], mx::float32, node, given);
  Sizes sizes(p);
  auto parts = mx::split(all, {sizes.q, sizes.q + sizes.k}, 0, s);
  auto summed = [&](const mx::array& part, const mx::array& like) {
    int groups = p.heads / p.kv_heads;
    mx::array heads =
        mx::reshape(part, {p.B, p.kv_heads, groups, p.S, like.shape(-1)}, s);
    return mx::astype(mx::sum(heads, 2, false, s), like.dtype(), s);
  };
  return std::vector<mx::array>{
      mx::astype(mx::reshape(parts[0], q.shape(), s), q.dtype(), s),
      summed(parts[1], k),
      summed(parts[2], v)};
}

void AttentionGradientNode::eval_cpu(const std::vector<mx::array>& inputs,
                                     std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu::AttentionGradient p = problem_of(inputs, options());
  using bridge::RowContiguous;
  cpu_task::dispatch(stream(),
                     outputs,
                     [p,
                      q = RowContiguous(inputs[kQ]),
                      k = RowContiguous(inputs[kK]),
                      v = RowContiguous(inputs[kV]),
                      dy = RowContiguous(inputs[kDy]),
                      dq = out.data<float>()]() mutable {
                       Sizes sizes(p);
                       float* dk = dq + sizes.q;
                       cpu::attention_gradient(p,
                                               {q.as<float>(),
                                                k.as<float>(),
                                                v.as<float>(),
                                                dy.as<float>(),
                                                dq,
                                                dk,
                                                dk + sizes.k});
                     });
}

mx::array AttentionGradientNode::by_mlx(const std::vector<mx::array>& inputs) {
  const mx::Stream& s = stream();
  cpu::AttentionGradient p = problem_of(inputs, options());
  int groups = p.heads / p.kv_heads;
  auto attention = [&](const std::vector<mx::array>& in) {
    return std::vector<mx::array>{
        mx::fast::scaled_dot_product_attention(in[kQ],
                                               in[kK],
                                               in[kV],
                                               options().scale,
                                               options().causal ? "causal" : "",
                                               std::nullopt,
                                               std::nullopt,
                                               false,
                                               s)};
  };
  // Each head of queries has its own keys and values.
  std::vector<mx::array> each{inputs[kQ],
                              mx::repeat(inputs[kK], groups, 1, s),
                              mx::repeat(inputs[kV], groups, 1, s)};
  auto gradients = mx::vjp(attention, each, {inputs[kDy]}).second;
  for (mx::array& gradient : gradients) {
    gradient = mx::flatten(gradient, 0, -1, s);
  }
  return mx::concatenate(gradients, 0, s);
}

std::vector<mx::Shape> AttentionGradientNode::output_shapes(
    const std::vector<mx::array>& inputs) {
  Sizes sizes(problem_of(inputs, options()));
  return {{sizes.q + sizes.k + sizes.v}};
}

}  // namespace nibble
