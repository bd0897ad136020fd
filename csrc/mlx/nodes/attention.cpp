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

enum Input { kQ, kK, kV, kMask };

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

void AttentionPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                  std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array &q = inputs[kQ], &k = inputs[kK], &v = inputs[kV];
  cpu::Attention p{};
  p.B = q.shape(0);
  p.heads = q.shape(1);
  p.kv_heads = k.shape(1);
  p.L = q.shape(2);
  p.S = options_.keys ? options_.keys : k.shape(2);
  p.D = q.shape(3);
  p.Dv = v.shape(3);
  p.dtype = *to_dtype(q.dtype());
  p.scale = options_.scale;
  p.causal = options_.causal;
  p.batch_invariant = options_.batch_invariant;

  // In memory [B, L, heads, Dv]: the next operation transposes to this.
  if (options_.flat) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  } else {
    bridge::give_head_memory(out);
  }

  const mx::array& mask = inputs[options_.has_mask ? kMask : kQ];
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
                      k = StridedRows(k),
                      v = StridedRows(v),
                      mask_data = dense_mask ? nullptr : mask.data<void>(),
                      mask = RowContiguous(mask),
                      sinks = RowContiguous(sinks),
                      y = out.data<void>()]() mutable {
                       auto take = [](StridedRows& rows,
                                      int64_t (&strides)[3]) {
                         const cpu::RowGrid& grid = rows.grid();
                         std::copy(grid.strides, grid.strides + 3, strides);
                         return grid.data;
                       };
                       cpu::AttentionOperands operands{};
                       operands.q = take(q, p.q_strides);
                       operands.k = take(k, p.k_strides);
                       operands.v = take(v, p.v_strides);
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
  int Dv = inputs[kV].shape(-1);
  if (options_.flat) {
    return {{q[0], q[2], q[1] * Dv}};
  }
  return {{q[0], q[1], q[2], Dv}};
}

mx::array AttentionPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  std::optional<mx::array> mask, sinks;
  if (options_.has_mask) {
    mask = inputs[kMask];
  }
  if (options_.has_sinks) {
    sinks = inputs.back();
  }
  return mx::fast::scaled_dot_product_attention(inputs[kQ],
                                                inputs[kK],
                                                inputs[kV],
                                                options_.scale,
                                                options_.causal ? "causal" : "",
                                                mask,
                                                sinks,
                                                false,
                                                stream());
}

}  // namespace nibble
