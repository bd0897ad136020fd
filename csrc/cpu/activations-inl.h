// Activations of vectors, written once against a SIMD facade V. Everything has
// internal linkage, as in kernels-inl.h.
#pragma once

#include "csrc/cpu/activation.h"
#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

// Returns v / (1 + e^(-factor v)).
template <class V>
typename V::F times_sigmoid(typename V::F v, float factor) {
  return V::div(v, V::add(V::set1(1), exp<V>(V::mul(v, V::set1(-factor)))));
}

// Returns v P(v), P the distribution function of the normal distribution:
// max(v, 0) - |v| P(-|v|). With u = 1 / (1 + t / 4), P(-t) = e^(-t^2 / 2) h(u).
// h is a polynomial that was fitted to a relative error of 8e-9, so nothing
// cancels for negative v.
template <class V>
typename V::F gelu(typename V::F v) {
  using F = typename V::F;
  F t = V::max(V::mul(v, V::set1(-1)), v);
  t = V::min(V::set1(20),
             t);  // e^(-t^2 / 2) is 0 there; infinity stays defined
  F u = V::div(V::set1(1), V::fma(t, V::set1(0.25f), V::set1(1)));
  F h = V::set1(0.01571567740156492f);
  for (float c : {-0.05753334225138837f,
                  0.03754905057441224f,
                  0.05035396369909613f,
                  -0.00912062866374758f,
                  0.10120298063548447f,
                  0.06544261281274277f,
                  0.09748784273926359f,
                  0.09911418157457783f,
                  0.09978967926127266f,
                  -2.013956132099204e-06f}) {
    h = V::fma(h, u, V::set1(c));
  }
  F e = exp<V>(V::mul(V::mul(t, t), V::set1(-0.5f)));
  F tail = V::mul(V::mul(t, V::set1(-1)), V::mul(e, h));
  return V::add(V::max(V::zero(), v), tail);
}

template <class V, Activation kKind>
typename V::F activated(const ActivationOptions& o, typename V::F v) {
  using F = typename V::F;
  switch (kKind) {
    case Activation::kSilu:
      return silu<V>(v);
    case Activation::kGelu:
      return gelu<V>(v);
    case Activation::kGeluTanh: {
      // (1 + tanh z) / 2 = 1 / (1 + e^-2z)
      constexpr float kTwice = 2 * 0.7978845608028654f;
      F cubic = V::fma(V::mul(v, v), V::set1(0.044715f), V::set1(1));
      F z = V::mul(V::mul(v, cubic), V::set1(-kTwice));
      return V::div(v, V::add(V::set1(1), exp<V>(z)));
    }
    case Activation::kGeluSigmoid:
      return times_sigmoid<V>(v, 1.702f);
    case Activation::kReluSquared: {
      F positive = V::max(V::zero(), v);
      return V::mul(positive, positive);
    }
    case Activation::kTanh:
      return tanh<V>(v);
    case Activation::kSigmoid: {
      F minus = V::mul(v, V::set1(-1));
      return V::div(V::set1(1), V::add(V::set1(1), exp<V>(minus)));
    }
    case Activation::kClipped:
      return times_sigmoid<V>(V::min(V::set1(o.limit), v), o.alpha);
  }
  return v;
}

// activate() of one kind.
template <class V, Activation kKind>
void activate_as(const ActivationOptions& options,
                 Dtype dtype,
                 const uint8_t* gate,
                 const uint8_t* up,
                 size_t count,
                 uint8_t* y) {
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    constexpr size_t kSize = size_of(kDtype);
    for (size_t i = 0; i < count; i += V::kLanes) {
      int n = count - i < V::kLanes ? static_cast<int>(count - i) : V::kLanes;
      auto v = activated<V, kKind>(
          options, V::template load_as_float<kDtype>(gate + i * kSize, n));
      if (up) {
        auto factor = V::template load_as_float<kDtype>(up + i * kSize, n);
        if constexpr (kKind == Activation::kClipped) {
          factor = V::max(V::set1(-options.limit),
                          V::min(V::set1(options.limit), factor));
          factor = V::add(factor, V::set1(1));
        }
        v = V::mul(v, factor);
      }
      V::template store_rounded<kDtype>(y + i * kSize, v, n);
    }
  });
}

// y = the activation of gate, times up unless up is null.
template <class V>
void activate(const ActivationOptions& options,
              Dtype dtype,
              const uint8_t* gate,
              const uint8_t* up,
              size_t count,
              uint8_t* y) {
  auto as = [&](auto* function) {
    function(options, dtype, gate, up, count, y);
  };
  switch (options.kind) {
    case Activation::kSilu:
      return as(activate_as<V, Activation::kSilu>);
    case Activation::kGelu:
      return as(activate_as<V, Activation::kGelu>);
    case Activation::kGeluTanh:
      return as(activate_as<V, Activation::kGeluTanh>);
    case Activation::kGeluSigmoid:
      return as(activate_as<V, Activation::kGeluSigmoid>);
    case Activation::kReluSquared:
      return as(activate_as<V, Activation::kReluSquared>);
    case Activation::kTanh:
      return as(activate_as<V, Activation::kTanh>);
    case Activation::kSigmoid:
      return as(activate_as<V, Activation::kSigmoid>);
    case Activation::kClipped:
      return as(activate_as<V, Activation::kClipped>);
  }
}

// y [D] = (x - mean) / sqrt(variance + eps) * weight + bias; both may be null
// and have whole vectors. scratch: whole_vectors(D) floats.
template <class V>
void layer_norm(Dtype dtype,
                const uint8_t* x,
                const float* weight,
                const float* bias,
                int D,
                float eps,
                Dtype out_dtype,
                uint8_t* y,
                float* scratch) {
  using F = typename V::F;
  widen<V>(dtype, x, D, scratch);
  for (int i = D; i < whole_vectors(D); ++i) scratch[i] = 0;
  auto total = [&] {
    F sums[2] = {V::zero(), V::zero()};
    for (int i = 0; i < whole_vectors(D); i += V::kLanes) {
      auto& sum = sums[i / V::kLanes % 2];
      sum = V::add(sum, V::load(scratch + i));
    }
    return V::sum(V::add(sums[0], sums[1])) / static_cast<float>(D);
  };
  F minus_mean = V::set1(-total());
  F squares = V::zero();
  for (int i = 0; i < whole_vectors(D); i += V::kLanes) {
    F v = V::add(V::load(scratch + i), minus_mean);
    V::store(scratch + i, v);
    // Lanes beyond the row must not count.
    if (i + V::kLanes > D) {
      for (int j = D; j < i + V::kLanes; ++j) scratch[j] = 0;
      v = V::load(scratch + i);
    }
    squares = V::fma(v, v, squares);
  }
  float variance = V::sum(squares) / static_cast<float>(D);
  F factor = V::set1(1 / std::sqrt(variance + eps));
  for (int i = 0; i < whole_vectors(D); i += V::kLanes) {
    F v = V::mul(V::load(scratch + i), factor);
    if (weight) v = V::mul(v, V::load(weight + i));
    if (bias) v = V::add(v, V::load(bias + i));
    V::store(scratch + i, v);
  }
  round_floats<V>(out_dtype, scratch, D, y);
}

}  // namespace
}  // namespace nibble::cpu
