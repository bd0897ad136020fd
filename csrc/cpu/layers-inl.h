// The layers between the products, written once against a SIMD facade V.
// Everything has internal linkage, as in kernels-inl.h.
#pragma once

#include <cmath>

#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {
namespace {

template <class V>
void widen(Dtype dtype, const uint8_t* x, int count, float* out) {
  with_dtype(dtype,
             [&](auto d) { to_floats<V, decltype(d)::value>(x, count, out); });
}

// Returns e^v with an error of at most 2 units in the last place. The result is
// 0 for v below -87.68, where it would be subnormal, and infinity for v beyond
// 88.37, a little early. NaN stays NaN.
template <class V>
typename V::F exp(typename V::F v) {
  using F = typename V::F;
  v = V::max(V::set1(-88.0f), V::min(V::set1(89.0f), v));
  F n = V::round(V::mul(v, V::set1(0x1.715476p0f)));
  n = V::max(n, V::set1(-127.0f));
  // r = v - n ln 2, with ln 2 in two parts. The product of the first part is
  // exact, because it has few bits.
  F r = V::fma(n, V::set1(-0x1.62e400p-1f), v);
  r = V::fma(n, V::set1(-0x1.7f7d1cp-20f), r);
  // Taylor series to degree 7: the remainder at |r| = ln 2 / 2 is 5e-9 of e^r.
  F p = V::set1(1.0f / 5040);
  for (float c :
       {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.f, 1.f}) {
    p = V::fma(p, r, V::set1(c));
  }
  // 2^128 is infinity: its exponent has all bits set.
  return V::mul(p, V::exp2_integral(n));
}

// Returns tanh v with an error of some units in the last place, by m / (m + 2)
// with m = e^2v - 1. m is formed without cancellation: it is 2^n q + (2^n - 1)
// with q = e^r - 1, and n is 0 for small v. NaN stays NaN.
template <class V>
typename V::F tanh(typename V::F v) {
  using F = typename V::F;
  v = V::add(v, v);
  v = V::max(V::set1(-40.0f), V::min(V::set1(40.0f), v));
  F n = V::round(V::mul(v, V::set1(0x1.715476p0f)));
  F r = V::fma(n, V::set1(-0x1.62e400p-1f), v);
  r = V::fma(n, V::set1(-0x1.7f7d1cp-20f), r);
  F p = V::set1(1.0f / 5040);
  for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.f}) {
    p = V::fma(p, r, V::set1(c));
  }
  F power = V::exp2_integral(n);
  F m = V::fma(power, V::mul(p, r), V::add(power, V::set1(-1)));
  return V::div(m, V::add(m, V::set1(2)));
}

template <class V>
void rms_norm(Dtype dtype,
              const uint8_t* x,
              const float* weight,
              int D,
              float eps,
              Dtype out_dtype,
              uint8_t* y,
              float* scratch) {
  widen<V>(dtype, x, D, scratch);
  for (int i = D; i < whole_vectors(D); ++i) scratch[i] = 0;
  typename V::F sums[2] = {V::zero(), V::zero()};
  for (int i = 0; i < whole_vectors(D); i += V::kLanes) {
    typename V::F v = V::load(scratch + i);
    auto& sum = sums[i / V::kLanes % 2];
    sum = V::fma(v, v, sum);
  }
  float mean = V::sum(V::add(sums[0], sums[1])) / static_cast<float>(D);
  typename V::F factor = V::set1(1 / std::sqrt(mean + eps));
  for (int i = 0; i < whole_vectors(D); i += V::kLanes) {
    typename V::F v = V::mul(V::load(scratch + i), factor);
    V::store(scratch + i, weight ? V::mul(v, V::load(weight + i)) : v);
  }
  round_floats<V>(out_dtype, scratch, D, y);
}

template <class V>
void rotate(Dtype dtype,
            const uint8_t* x,
            const float* cosines,
            const float* sines,
            int half,
            bool traditional,
            uint8_t* y,
            float* scratch) {
  float* out = scratch + whole_vectors(2 * half);
  size_t size = size_of(dtype);
  if (traditional) {
    widen<V>(dtype, x, 2 * half, scratch);
    for (int i = 0; i < half; ++i) {
      float a = scratch[2 * i], b = scratch[2 * i + 1];
      out[2 * i] = a * cosines[i] - b * sines[i];
      out[2 * i + 1] = a * sines[i] + b * cosines[i];
    }
    round_floats<V>(dtype, out, 2 * half, y);
    return;
  }
  // The halves are widened one by one, so that each begins with a vector.
  float* second = scratch + whole_vectors(half);
  widen<V>(dtype, x, half, scratch);
  widen<V>(dtype, x + half * size, half, second);
  typename V::F minus = V::set1(-1);
  for (int i = 0; i < half; i += V::kLanes) {
    typename V::F a = V::load(scratch + i), b = V::load(second + i);
    typename V::F c = V::load(cosines + i), s = V::load(sines + i);
    V::store(scratch + i, V::fma(a, c, V::mul(V::mul(b, s), minus)));
    V::store(second + i, V::fma(a, s, V::mul(b, c)));
  }
  round_floats<V>(dtype, scratch, half, y);
  round_floats<V>(dtype, second, half, y + half * size);
}

// Returns v / (1 + e^-v).
template <class V>
typename V::F silu(typename V::F v) {
  typename V::F e = exp<V>(V::mul(v, V::set1(-1)));
  return V::div(v, V::add(V::set1(1), e));
}

// Returns true if one of the bits of magnitudes is a NaN's.
template <class V>
bool is_nan(typename V::I magnitudes) {
  int32_t lanes[V::kLanes];
  V::int_store(lanes, magnitudes);
  for (int32_t lane : lanes) {
    if (lane > 0x7f800000) return true;
  }
  return false;
}

template <class V, Dtype kDtype>
void sum_exponentials(const uint8_t* x,
                      size_t count,
                      float* largest,
                      float* sum) {
  using F = typename V::F;
  constexpr size_t kSize = size_of(kDtype), kLanes = V::kLanes;
  float tail[kMaxLanes];
  for (float& v : tail) v = -INFINITY;
  size_t whole = count / kLanes * kLanes;
  to_floats<V, kDtype>(
      x + whole * kSize, static_cast<int>(count - whole), tail);
  for (size_t i = count - whole; i < kLanes; ++i) tail[i] = -INFINITY;
  auto each = [&](auto&& body) {
    for (size_t i = 0; i < whole; i += kLanes) {
      body(V::template load_as_float<kDtype>(x + i * kSize, V::kLanes),
           i / kLanes % 2);
    }
    body(V::load(tail), 0);
  };
  F top = V::load(tail);
  each([&](F v, size_t) { top = V::max(v, top); });
  *largest = V::largest(top);
  if (std::isinf(*largest)) {
    // The maximum may have passed over a NaN.
    typename V::I bits = V::int_zero();
    each([&](F v, size_t) { bits = V::max_magnitude(bits, v); });
    *sum = is_nan<V>(bits) ? NAN : 0;
    return;
  }
  F base = V::set1(-*largest);
  F sums[2] = {V::zero(), V::zero()};
  each([&](F v, size_t which) {
    sums[which] = V::add(sums[which], exp<V>(V::add(v, base)));
  });
  *sum = V::sum(V::add(sums[0], sums[1]));
}

template <class V>
void sum_exponentials(
    Dtype dtype, const uint8_t* x, size_t count, float* largest, float* sum) {
  with_dtype(dtype, [&](auto d) {
    sum_exponentials<V, decltype(d)::value>(x, count, largest, sum);
  });
}

template <class V>
void find_largest(Dtype dtype,
                  const uint8_t* x,
                  size_t count,
                  float* largest,
                  size_t* place) {
  constexpr int kBlock = 512;
  alignas(64) float block[kBlock];
  *largest = -INFINITY;
  *place = 0;
  for (size_t i = 0; i < count; i += kBlock) {
    int n = count - i < kBlock ? static_cast<int>(count - i) : kBlock;
    widen<V>(dtype, x + i * size_of(dtype), n, block);
    for (int j = n; j < whole_vectors(n); ++j) block[j] = -INFINITY;
    typename V::F top = V::set1(-INFINITY);
    typename V::I bits = V::int_zero();
    for (int j = 0; j < n; j += V::kLanes) {
      typename V::F v = V::load(block + j);
      top = V::max(v, top);
      bits = V::max_magnitude(bits, v);
    }
    float here = V::largest(top);
    bool nan = is_nan<V>(bits);
    if (!nan && here <= *largest) continue;
    int at = 0;
    while (nan ? block[at] == block[at] : block[at] != here) ++at;
    *largest = block[at];
    *place = i + at;
    if (nan) return;
  }
}

}  // namespace
}  // namespace nibble::cpu
