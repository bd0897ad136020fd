#include "csrc/mlx/nodes/attention.h"

#include <algorithm>
#include <memory>
#include <optional>

#include "csrc/core/error.h"
#include "csrc/core/format.h"
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
constexpr const char* kQuantized = "quantized_scaled_dot_product_attention";

// Keys or values: floats, or codes, scales and biases.
using Cache = std::vector<mx::array>;

// The elements of a row.
int width(const Cache& cache, int group_size) {
  return cache.size() > 1 ? cache[1].shape(3) * group_size : cache[0].shape(3);
}

bool shapes_fit(const mx::array& q,
                const Cache& k,
                const Cache& v,
                int group_size) {
  auto fits = [&](const mx::array& a) {
    return a.ndim() == 4 && a.size() > 0 && a.shape(0) == q.shape(0) &&
           a.shape(1) == k[0].shape(1) && a.shape(2) == k[0].shape(2);
  };
  return q.ndim() == 4 && q.size() > 0 && std::ranges::all_of(k, fits) &&
         std::ranges::all_of(v, fits) && q.shape(1) % k[0].shape(1) == 0 &&
         width(k, group_size) == q.shape(3);
}

// True if our kernels read these arrays.
bool readable(const Cache& cache, int group_size, int bits) {
  if (cache.size() == 1) {
    return to_dtype(cache[0].dtype()).has_value();
  }
  const mx::array &codes = cache[0], &scales = cache[1], &biases = cache[2];
  int groups = scales.shape(3);
  return (bits == 2 || bits == 4 || bits == 8) &&
         supported({bits, group_size}, groups * group_size) &&
         codes.dtype() == mx::uint32 && to_dtype(scales.dtype()) &&
         scales.dtype() == biases.dtype() && biases.shape(3) == groups &&
         int64_t{codes.shape(3)} * 32 == int64_t{groups} * group_size * bits;
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

using Masking = std::variant<std::monostate, std::string, mx::array>;

// A call of one of the two operations. The type is that of queries and result.
struct Call {
  mx::array q;
  Cache k, v;
  const std::string* mode;  // of the mask
  const mx::array* mask;
  std::optional<mx::array> sinks;
  AttentionOptions options;
  mx::Stream stream;
};

// True if our kernels compute the call.
bool is_ours(const Call& c) {
  const AttentionOptions& o = c.options;
  if (c.stream.device != mx::Device::cpu || !to_dtype(c.q.dtype()) ||
      !shapes_fit(c.q, c.k, c.v, o.group_size) ||
      !readable(c.k, o.group_size, o.bits) ||
      !readable(c.v, o.group_size, o.bits) || (c.mode && *c.mode != "causal")) {
    return false;
  }
  auto is_narrow = [&](mx::Dtype dtype) {
    return mx::promote_types(dtype, c.q.dtype()) == c.q.dtype();
  };
  if (c.mask) {
    mx::Shape scores = {
        c.q.shape(0), c.q.shape(1), c.q.shape(2), c.k[0].shape(2)};
    bool added = to_dtype(c.mask->dtype()) && is_narrow(c.mask->dtype());
    if (!broadcasts(*c.mask, scores) ||
        (c.mask->dtype() != mx::bool_ && !added)) {
      return false;
    }
  }
  return !c.sinks ||
         (c.sinks->ndim() == 1 && c.sinks->shape(0) == c.q.shape(1) &&
          mx::issubdtype(c.sinks->dtype(), mx::floating) &&
          is_narrow(c.sinks->dtype()));
}

mx::array build(Call c) {
  fusion::join_heads(c.q, c.k[0], c.v[0]);
  std::vector<mx::array> inputs = {c.q};
  inputs.insert(inputs.end(), c.k.begin(), c.k.end());
  inputs.insert(inputs.end(), c.v.begin(), c.v.end());
  size_t cached = inputs.size();
  if (c.mask) {
    inputs.push_back(*c.mask);
  }
  if (c.sinks) {
    inputs.push_back(mx::astype(*c.sinks, mx::float32, c.stream));
  }
  bool traced = std::ranges::any_of(
      inputs, [](const mx::array& a) { return a.is_tracer(); });
  if (!traced &&
      std::all_of(
          inputs.begin() + 1, inputs.begin() + cached, starts_at_first_key)) {
    c.options.keys = c.k[0].shape(2);
    for (size_t i = 1; i < cached; ++i) {
      inputs[i] = mx::array(inputs[i].inputs()[0]);
    }
  }
  mx::Shape shape = c.q.shape();
  shape.back() = width(c.v, c.options.group_size);
  return mx::array(std::move(shape),
                   c.q.dtype(),
                   std::make_shared<AttentionPrimitive>(c.stream, c.options),
                   std::move(inputs));
}

// Reads a mask; throws where MLX's Python function does and its C++ function
// does not.
void read_mask(const char* op, const Masking& mask, Call& call) {
  call.mode = std::get_if<std::string>(&mask);
  call.mask = std::get_if<mx::array>(&mask);
  require(!call.mode || !call.mode->empty(),
          op,
          "mask must be None, 'causal' or an array but got ''");
  call.options.causal = call.mode != nullptr;
  call.options.has_mask = call.mask != nullptr;
  call.options.has_sinks = call.sinks.has_value();
}

void check_cap(const char* op, float cap, bool has_sinks) {
  require(cap >= 0 && (cap == 0 || !has_sinks),
          op,
          "a cap of scores of 0 or more, and none with sinks, is required but "
          "got ",
          cap);
}

mx::array by_mlx(const Call& c,
                 const mx::array& k,
                 const mx::array& v,
                 bool force_fused) {
  if (c.options.cap != 0) {
    AttentionOptions options = c.options;
    options.causal = c.mode && *c.mode == "causal";
    return capped_attention(c.q,
                            k,
                            v,
                            options,
                            c.mask ? std::optional(*c.mask) : std::nullopt,
                            c.stream);
  }
  return mx::fast::scaled_dot_product_attention(
      c.q,
      k,
      v,
      c.options.scale,
      c.mode ? *c.mode : "",
      c.mask ? std::optional(*c.mask) : std::nullopt,
      c.sinks,
      force_fused,
      c.stream);
}

// The result in the type to which queries, keys and values are promoted.
template <typename Fn>
mx::array compute(Call call, mx::Dtype dtype, Fn&& otherwise) {
  Call ours = call;
  if (ours.q.dtype() != dtype && to_dtype(ours.q.dtype()) && to_dtype(dtype)) {
    ours.q = mx::astype(ours.q, dtype, call.stream);
  }
  return is_ours(ours) ? build(std::move(ours)) : otherwise(call);
}

}  // namespace

mx::array scaled_dot_product_attention(const mx::array& q,
                                       const mx::array& k,
                                       const mx::array& v,
                                       float scale,
                                       const Masking& mask,
                                       const std::optional<mx::array>& sinks,
                                       bool force_fused,
                                       bool batch_invariant,
                                       float cap,
                                       mx::StreamOrDevice s) {
  check_cap(kAttention, cap, sinks.has_value());
  Call call{q, {k}, {v}, nullptr, nullptr, sinks, {}, mx::to_stream(s)};
  call.options.scale = scale;
  call.options.cap = cap;
  call.options.batch_invariant = batch_invariant;
  read_mask(kAttention, mask, call);
  require(k.ndim() != 4 || k.shape(1) > 0,
          kAttention,
          "k must have one head or more but its shape is ",
          ops::text(k.shape()));
  return compute(std::move(call), mx::result_type(q, k, v), [&](const Call& c) {
    return by_mlx(c, k, v, force_fused);
  });
}

mx::array quantized_scaled_dot_product_attention(
    const mx::array& q,
    const std::vector<mx::array>& keys,
    const std::vector<mx::array>& values,
    float scale,
    const Masking& mask,
    const std::optional<mx::array>& sinks,
    int group_size,
    int bits,
    bool batch_invariant,
    float cap,
    mx::StreamOrDevice s) {
  check_cap(kQuantized, cap, sinks.has_value());
  ops::check_format(kQuantized, {bits, group_size});
  for (const Cache* cache : {&keys, &values}) {
    require(cache->size() == 3,
            kQuantized,
            "codes, scales and biases are required but got ",
            cache->size(),
            " arrays");
    const mx::array& codes = (*cache)[0];
    require(codes.ndim() == 4 && codes.shape(1) > 0,
            kQuantized,
            "codes [B, heads, keys, words] are required but their shape is ",
            ops::text(codes.shape()));
  }
  Call call{q, keys, values, nullptr, nullptr, sinks, {}, mx::to_stream(s)};
  call.options.scale = scale;
  call.options.batch_invariant = batch_invariant;
  call.options.group_size = group_size;
  call.options.bits = bits;
  call.options.cap = cap;
  read_mask(kQuantized, mask, call);
  mx::Dtype dtype = mx::result_type(q, keys[1], values[1]);
  return compute(std::move(call), dtype, [&](const Call& c) {
    auto rows = [&](const Cache& cache) {
      return mx::dequantize(cache[0],
                            cache[1],
                            cache[2],
                            group_size,
                            bits,
                            "affine",
                            std::nullopt,
                            dtype,
                            c.stream);
    };
    return by_mlx(c, rows(keys), rows(values), false);
  });
}

}  // namespace nibble::fast
