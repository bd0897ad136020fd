#include "csrc/mlx/nodes/attention.h"

#include <algorithm>
#include <optional>

#include "csrc/cpu/attention.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/nodes/attention_gradient.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

namespace {

enum Input { kQ, kK };

// Keys or values among the inputs of a node.
class CacheInput {
 public:
  CacheInput(const std::vector<mx::array>& inputs,
             int first,
             const AttentionOptions& options)
      : rows_(inputs[first]), options_(options) {
    dtype_ = *to_dtype(inputs[first + options.arrays() - 1].dtype());
    if (options.bits > 0) {
      scales_.emplace(inputs[first + 1]);
      biases_.emplace(inputs[first + 2]);
    }
  }

  // When the inputs have values.
  void fill(cpu::CacheShape& shape, cpu::CacheOperand& operand) {
    shape.dtype = dtype_;
    shape.bits = options_.bits;
    shape.group_size = options_.group_size;
    operand.data = take(rows_, shape.strides);
    if (scales_) {
      operand.scales = take(*scales_, shape.scale_strides);
      operand.biases = take(*biases_, shape.bias_strides);
    }
  }

  static const void* take(StridedRows& rows, int64_t (&strides)[3]) {
    const cpu::RowGrid& grid = rows.grid();
    std::copy(grid.strides, grid.strides + 3, strides);
    return grid.data;
  }

 private:
  StridedRows rows_;
  std::optional<StridedRows> scales_, biases_;
  AttentionOptions options_;
  Dtype dtype_;
};

// The elements of a row of values.
int value_width(const std::vector<mx::array>& inputs,
                const AttentionOptions& options) {
  int first = kK + options.arrays();
  return options.bits > 0 ? inputs[first + 1].shape(-1) * options.group_size
                          : inputs[first].shape(-1);
}

// Sets the strides of all dimensions but the last, 0 where the mask is
// broadcast: those of its own memory, or of a row-contiguous copy.
void mask_strides(const mx::array& mask, bool copied, int64_t (&strides)[3]) {
  int64_t dense = 1;
  for (int d = -1; d >= -4; --d) {
    bool real = d >= -static_cast<int>(mask.ndim()) && mask.shape(d) != 1;
    if (d < -1) {
      strides[4 + d] = !real ? 0 : copied ? dense : mask.strides(d);
    }
    if (real) {
      dense *= mask.shape(d);
    }
  }
}

}  // namespace

mx::array capped_attention(const mx::array& q,
                           const mx::array& k,
                           const mx::array& v,
                           const AttentionOptions& options,
                           const std::optional<mx::array>& mask,
                           const mx::Stream& s) {
  int groups = q.shape(1) / k.shape(1), L = q.shape(2), S = k.shape(2);
  auto number = [&](double value) { return mx::array(value, q.dtype()); };
  mx::array scaled = mx::unflatten(
      mx::multiply(q, number(options.scale), s), 1, {-1, groups}, s);
  mx::array scores =
      mx::matmul(scaled, mx::swapaxes(mx::expand_dims(k, 2, s), -1, -2, s), s);
  scores = mx::tanh(mx::divide(scores, number(options.cap), s), s);
  scores = mx::flatten(mx::multiply(scores, number(options.cap), s), 1, 2, s);
  std::optional<mx::array> seen;
  if (options.causal) {
    seen = mx::tri(L, S, S - L, mx::bool_, s);
  } else if (mask && mask->dtype() == mx::bool_) {
    seen = mask;
  } else if (mask) {
    scores = mx::add(scores, *mask, s);
  }
  if (seen) {
    scores = mx::where(*seen, scores, number(mx::finfo(q.dtype()).min), s);
  }
  mx::array weights =
      mx::unflatten(mx::softmax(scores, {-1}, true, s), 1, {-1, groups}, s);
  return mx::flatten(mx::matmul(weights, mx::expand_dims(v, 2, s), s), 1, 2, s);
}

void AttentionPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                  std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array &q = inputs[kQ], &k = inputs[kK];
  int first_value = kK + options_.arrays();
  cpu::Attention p{};
  p.B = q.shape(0);
  p.heads = q.shape(1);
  p.kv_heads = k.shape(1);
  p.L = q.shape(2);
  p.S = options_.keys ? options_.keys : k.shape(2);
  p.D = q.shape(3);
  p.Dv = value_width(inputs, options_);
  p.dtype = *to_dtype(q.dtype());
  p.scale = options_.scale;
  p.cap = options_.cap;
  p.causal = options_.causal;
  p.batch_invariant = options_.batch_invariant;

  // In memory [B, L, heads, Dv]: the next operation transposes to this.
  if (options_.flat) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  } else {
    bridge::give_head_memory(out);
  }

  const mx::array& mask =
      inputs[options_.has_mask ? first_value + options_.arrays() : kQ];
  const mx::array& sinks = inputs.back();
  bool dense_mask = true;
  if (options_.has_mask) {
    p.mask = mask.dtype() == mx::bool_ ? cpu::MaskKind::kBool
                                       : cpu::MaskKind::kAdditive;
    p.mask_dtype = to_dtype(mask.dtype()).value_or(Dtype::kFloat32);
    dense_mask = mask.strides(-1) != 1 && mask.shape(-1) != 1;
    mask_strides(mask, dense_mask, p.mask_strides);
  }
  cpu_task::dispatch(stream(),
                     outputs,
                     [p,
                      plan = plan_cpu(p, cpu::profile()),
                      options = options_,
                      q = StridedRows(q),
                      keys = CacheInput(inputs, kK, options_),
                      values = CacheInput(inputs, first_value, options_),
                      mask_data = dense_mask ? nullptr : mask.data<void>(),
                      mask = RowContiguous(mask),
                      sinks = RowContiguous(sinks),
                      y = out.data<void>()]() mutable {
                       cpu::AttentionOperands operands{};
                       operands.q = CacheInput::take(q, p.q_strides);
                       keys.fill(p.keys, operands.keys);
                       values.fill(p.values, operands.values);
                       operands.out = y;
                       if (options.has_mask) {
                         operands.mask = mask_data ? mask_data : mask.data();
                       }
                       if (options.has_sinks) {
                         operands.sinks = sinks.as<float>();
                       }
                       cpu::attention(p, plan, operands);
                     });
}

std::vector<mx::array> AttentionPrimitive::vjp(
    const std::vector<mx::array>& primals,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>& outputs) {
  auto all =
      AttentionGradientNode::of(primals, cotangents[0], options_, stream());
  if (!all) {
    return FastNode::vjp(primals, cotangents, argnums, outputs);
  }
  std::vector<mx::array> gradients;
  for (int arg : argnums) {
    gradients.push_back((*all)[arg]);
  }
  return gradients;
}

std::vector<mx::Shape> AttentionPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  const mx::Shape& q = inputs[kQ].shape();
  int Dv = value_width(inputs, options_);
  if (options_.flat) {
    return {{q[0], q[2], q[1] * Dv}};
  }
  return {{q[0], q[1], q[2], Dv}};
}

mx::array AttentionPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  int first_value = kK + options_.arrays();
  auto rows = [&](int first) {
    return options_.bits > 0 ? mx::dequantize(inputs[first],
                                              inputs[first + 1],
                                              inputs[first + 2],
                                              options_.group_size,
                                              options_.bits,
                                              "affine",
                                              std::nullopt,
                                              inputs[kQ].dtype(),
                                              stream())
                             : inputs[first];
  };
  std::optional<mx::array> mask, sinks;
  if (options_.has_mask) {
    mask = inputs[first_value + options_.arrays()];
  }
  if (options_.has_sinks) {
    sinks = inputs.back();
  }
  if (options_.cap != 0) {
    return capped_attention(
        inputs[kQ], rows(kK), rows(first_value), options_, mask, stream());
  }
  return mx::fast::scaled_dot_product_attention(inputs[kQ],
                                                rows(kK),
                                                rows(first_value),
                                                options_.scale,
                                                options_.causal ? "causal" : "",
                                                mask,
                                                sinks,
                                                false,
                                                stream());
}

}  // namespace nibble
