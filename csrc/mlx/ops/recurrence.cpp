// Linear recurrences.
#include "csrc/mlx/nodes/recurrence.h"

#include <memory>
#include <optional>
#include <vector>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/fast.h"
#include "mlx/ops.h"

namespace nibble::fast {
namespace {

using bridge::to_dtype;

// True if all arrays have values that a task can read, in types of ours.
bool are_ours(const mx::Stream& stream, const std::vector<mx::array>& arrays) {
  for (const mx::array& a : arrays) {
    if (a.is_tracer() || a.size() == 0 || !to_dtype(a.dtype())) {
      return false;
    }
  }
  return stream.device == mx::Device::cpu;
}

bool has_shape(const mx::array& a, const mx::Shape& shape) {
  return a.shape() == shape;
}

// Adds the state and the mask to the inputs of a recurrence over q [B, T, Hk,
// Dk] and v [B, T, Hv, Dv]; nullopt if one of them does not fit.
Recurrent recurrence(RecurrenceOptions options,
                     std::vector<mx::array> inputs,
                     const std::optional<mx::array>& state,
                     const std::optional<mx::array>& mask,
                     mx::Dtype dtype,
                     const mx::Stream& stream) {
  const mx::array &q = inputs[0], &v = inputs[2];
  if (!are_ours(stream, inputs)) {
    return std::nullopt;
  }
  bool fits = q.ndim() == 4 && v.ndim() == 4 &&
              q.shape() == inputs[1].shape() && q.shape(0) == v.shape(0) &&
              q.shape(1) == v.shape(1) && v.shape(2) % q.shape(2) == 0;
  if (!fits) {
    return std::nullopt;
  }
  // Copies: the inputs move when others join them.
  mx::Shape of_state = {v.shape(0), v.shape(2), v.shape(3), q.shape(3)};
  mx::Shape of_y = v.shape();
  options.has_state = state.has_value();
  options.has_mask = mask.has_value();
  if (state) {
    if (!are_ours(stream, {*state}) || !has_shape(*state, of_state) ||
        state->dtype() != mx::float32) {
      return std::nullopt;
    }
    inputs.push_back(*state);
  }
  if (mask) {
    if (mask->is_tracer() || mask->dtype() != mx::bool_ ||
        !has_shape(*mask, {of_y[0], of_y[1]})) {
      return std::nullopt;
    }
    inputs.push_back(*mask);
  }
  std::vector<mx::array> made = mx::array::make_arrays(
      {of_y, of_state},
      {dtype, mx::float32},
      std::make_shared<RecurrencePrimitive>(stream, options),
      inputs);
  return std::pair{made[0], made[1]};
}

}  // namespace

Recurrent gated_delta(const mx::array& q,
                      const mx::array& k,
                      const mx::array& v,
                      const mx::array& decay,
                      const mx::array& beta,
                      const std::optional<mx::array>& state,
                      const std::optional<mx::array>& mask,
                      mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  if (v.ndim() != 4 || q.ndim() != 4 || beta.ndim() != 3) {
    return std::nullopt;
  }
  mx::Shape gates = {v.shape(0), v.shape(1), v.shape(2)}, vectors = gates;
  vectors.push_back(q.shape(3));
  if (!has_shape(beta, gates) ||
      !(has_shape(decay, gates) || has_shape(decay, vectors))) {
    return std::nullopt;
  }
  return recurrence({RecurrenceOptions::kGatedDelta},
                    {q,
                     k,
                     v,
                     mx::astype(beta, mx::float32, stream),
                     mx::astype(decay, mx::float32, stream)},
                    state,
                    mask,
                    q.dtype(),
                    stream);
}

Recurrent state_space(const mx::array& x,
                      const mx::array& log_rates,
                      const mx::array& b,
                      const mx::array& c,
                      const mx::array& skip,
                      const mx::array& dt,
                      const mx::array& dt_bias,
                      const std::pair<float, float>& limits,
                      const std::optional<mx::array>& state,
                      const std::optional<mx::array>& mask,
                      mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  if (x.ndim() != 4 || !has_shape(dt, {x.shape(0), x.shape(1), x.shape(2)}) ||
      !has_shape(log_rates, {x.shape(2)}) || !has_shape(skip, {x.shape(2)}) ||
      !has_shape(dt_bias, {x.shape(2)})) {
    return std::nullopt;
  }
  auto wide = [&](const mx::array& a) {
    return mx::astype(a, mx::float32, stream);
  };
  return recurrence(
      {RecurrenceOptions::kStateSpace, limits.first, limits.second},
      {c, b, x, wide(dt), wide(dt_bias), wide(log_rates), wide(skip)},
      state,
      mask,
      x.dtype(),
      stream);
}

Recurrent rwkv7(const mx::array& r,
                const mx::array& w,
                const mx::array& k,
                const mx::array& v,
                const mx::array& a,
                const mx::array& b,
                const std::optional<mx::array>& state,
                mx::StreamOrDevice s) {
  for (const mx::array* each : {&w, &v, &a, &b}) {
    if (!has_shape(*each, r.shape())) {
      return std::nullopt;
    }
  }
  return recurrence({RecurrenceOptions::kRwkv7},
                    {r, k, v, a, b, w},
                    state,
                    std::nullopt,
                    r.dtype(),
                    mx::to_stream(s));
}

Recurrent selective_scan(const mx::array& delta,
                         const mx::array& x,
                         const mx::array& b,
                         const mx::array& c,
                         const mx::array& rates,
                         const mx::array& skip,
                         const std::optional<mx::array>& state,
                         mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  if (x.ndim() != 3 || b.ndim() != 3 ||
      !are_ours(stream, {delta, x, b, c, rates, skip})) {
    return std::nullopt;
  }
  int B = x.shape(0), T = x.shape(1), C = x.shape(2), N = b.shape(2);
  bool fits = delta.shape() == x.shape() && b.shape() == c.shape() &&
              has_shape(b, {B, T, N}) && has_shape(rates, {C, N}) &&
              has_shape(skip, {C});
  fits = fits && (!state ||
                  (are_ours(stream, {*state}) && has_shape(*state, {B, C, N}) &&
                   state->dtype() == mx::float32));
  if (!fits) {
    return std::nullopt;
  }
  std::vector<mx::array> inputs = {delta,
                                   x,
                                   b,
                                   c,
                                   mx::astype(rates, mx::float32, stream),
                                   mx::astype(skip, mx::float32, stream)};
  if (state) {
    inputs.push_back(*state);
  }
  std::vector<mx::array> made = mx::array::make_arrays(
      {x.shape(), {B, C, N}},
      {x.dtype(), mx::float32},
      std::make_shared<SelectiveScanPrimitive>(stream, state.has_value()),
      inputs);
  return std::pair{made[0], made[1]};
}

}  // namespace nibble::fast
