#include "csrc/mlx/nodes/attention.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble::fast {

using bridge::to_dtype;
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

// True if k is a slice of a cache from its first key on: the filled part.
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
  // MLX's C++ function takes '' for no mask; its Python function refuses it.
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

}  // namespace nibble::fast
