// Attention as a node of MLX's graph.
#include "csrc/cpu/attention.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fast_primitives.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/heads.h"
#include "csrc/mlx/validate.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;
using graph::become;
using graph::is_pending;

namespace {

constexpr const char* kAttention = "scaled_dot_product_attention";

enum Input { kQ, kK, kV, kMask };

bool shapes_fit(const mx::array& q, const mx::array& k, const mx::array& v) {
  if (q.ndim() != 4 || k.ndim() != 4 || v.ndim() != 4) {
    return false;
  }
  return q.size() > 0 && k.size() > 0 && v.size() > 0 &&
         q.shape(0) == k.shape(0) && q.shape(0) == v.shape(0) &&
         k.shape(1) == v.shape(1) && q.shape(1) % k.shape(1) == 0 &&
         k.shape(2) == v.shape(2) && q.shape(3) == k.shape(3);
}

bool broadcasts(const mx::array& mask, const mx::Shape& shape) {
  if (mask.ndim() == 0 || mask.ndim() > 4 || mask.shape(-1) != shape[3]) {
    return false;
  }
  for (int d = 2; d <= static_cast<int>(mask.ndim()); ++d) {
    if (mask.shape(-d) != 1 && mask.shape(-d) != shape[4 - d]) {
      return false;
    }
  }
  return true;
}

// Strides of all dimensions but the last, 0 where the array is broadcast; of
// its own memory, or of a row-contiguous copy.
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

// True for the keys or values that a cache holds so far, cut from the room that
// it has for more.
bool starts_at_first_key(const mx::array& k) {
  if (!is_pending(k, "Slice")) {
    return false;
  }
  auto [start, end, steps] =
      static_cast<const mx::Slice&>(k.primitive()).state();
  mx::Shape whole = k.inputs()[0].shape();
  whole[2] = k.shape(2);
  return start == mx::Shape(4, 0) && steps == mx::Shape(4, 1) && end == whole;
}

}  // namespace

namespace fast {

mx::array scaled_dot_product_attention(
    const mx::array& q,
    const mx::array& k,
    const mx::array& v,
    float scale,
    const std::variant<std::monostate, std::string, mx::array>& mask,
    const std::optional<mx::array>& sinks,
    bool force_fused,
    bool batch_invariant,
    mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  const auto* mode = std::get_if<std::string>(&mask);
  const auto* array = std::get_if<mx::array>(&mask);
  // What MLX's C++ function takes for no mask, its Python function refuses.
  require(!mode || !mode->empty(),
          kAttention,
          "mask must be None, 'causal' or an array but got ''");
  require(k.ndim() != 4 || k.shape(1) > 0,
          kAttention,
          "k must have one head or more but its shape is ",
          ops::text(k.shape()));
  bool fits = shapes_fit(q, k, v) && (!mode || *mode == "causal");
  if (fits && array) {
    mx::Shape scores = {q.shape(0), q.shape(1), q.shape(2), k.shape(2)};
    fits = broadcasts(*array, scores) &&
           (array->dtype() == mx::bool_ ||
            (to_dtype(array->dtype()) &&
             mx::promote_types(array->dtype(), q.dtype()) == q.dtype()));
  }
  if (fits && sinks) {
    fits = sinks->ndim() == 1 && sinks->shape(0) == q.shape(1) &&
           mx::issubdtype(sinks->dtype(), mx::floating) &&
           mx::promote_types(sinks->dtype(), q.dtype()) == q.dtype();
  }
  bool ours = stream.device == mx::Device::cpu && fits && to_dtype(q.dtype()) &&
              q.dtype() == k.dtype() && q.dtype() == v.dtype();
  if (!ours) {
    return mx::fast::scaled_dot_product_attention(
        q,
        k,
        v,
        scale,
        mode ? *mode : "",
        array ? std::optional(*array) : std::nullopt,
        sinks,
        force_fused,
        s);
  }
  fusion::join_heads(q, k, v);
  AttentionOptions options{scale,
                           mode != nullptr,
                           array != nullptr,
                           sinks.has_value(),
                           batch_invariant};
  std::vector<mx::array> inputs = {q, k, v};
  if (array) {
    inputs.push_back(*array);
  }
  if (sinks) {
    inputs.push_back(mx::astype(*sinks, mx::float32, stream));
  }
  bool traced = std::any_of(inputs.begin(), inputs.end(), [](const auto& a) {
    return a.is_tracer();
  });
  if (!traced && starts_at_first_key(k) && starts_at_first_key(v)) {
    options.keys = k.shape(2);
    inputs[kK] = mx::array(k.inputs()[0]);
    inputs[kV] = mx::array(v.inputs()[0]);
  }
  mx::Shape shape = q.shape();
  shape.back() = v.shape(-1);
  return mx::array(std::move(shape),
                   q.dtype(),
                   std::make_shared<AttentionPrimitive>(stream, options),
                   std::move(inputs));
}

}  // namespace fast

namespace fusion {

void flatten_heads(const mx::array& x) {
  if (!is_pending(x, "Reshape") || x.ndim() != 3) {
    return;
  }
  const mx::array& rows = x.inputs()[0];
  if (!is_pending(rows, "Transpose") ||
      static_cast<const mx::Transpose&>(rows.primitive()).state() !=
          std::vector<int>{0, 2, 1, 3}) {
    return;
  }
  const mx::array& heads = rows.inputs()[0];
  if (!is_pending(heads, AttentionPrimitive::kName) ||
      x.shape(-1) != heads.shape(1) * heads.shape(3)) {
    return;
  }
  auto& attention = static_cast<AttentionPrimitive&>(heads.primitive());
  AttentionOptions options = attention.options();
  options.flat = true;
  become({x},
         std::make_shared<AttentionPrimitive>(attention.stream(), options),
         std::vector<mx::array>(heads.inputs()));
}

}  // namespace fusion

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

  // In memory [B, L, heads, Dv]: what follows attention transposes to this.
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
