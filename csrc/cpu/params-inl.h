// The parameters of groups: which arrays of them a format has, and the scale
// and bias that they give. V is a SIMD facade, here and in the files that
// include this one.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/kernels.h"

namespace nibble::cpu {
namespace {

// The most groups in a block of a row.
constexpr int kMostGroups = kBlockK / kSmallestGroup;

template <class V, Dtype kDtype>
void to_floats(const uint8_t* p, int count, float* out) {
  constexpr int kSize = size_of(kDtype);
  int i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::store(out + i, V::template load_as_float<kDtype>(p + i * kSize));
  }
  if (i < count) {  // out has room for whole vectors
    V::store(out + i,
             V::template load_as_float<kDtype>(p + i * kSize, count - i));
  }
}

// Calls fn with each array that the format has. Inlined: left to GCC 12, a
// product of one row in int8 on AVX2 takes 1.3 times as long (4096 x 4096,
// 4 bits).
template <typename Fn>
[[gnu::always_inline]] inline void by_param_arrays(const Weights& w, Fn&& fn) {
  fn(w.scales);
  if (w.format.has_biases()) fn(w.biases);
}

// The scales and biases of a weight row between two columns, as fp32. No biases
// if the codes have none.
template <class V, class Q, Dtype kDtype>
void read_params(
    const Weights& w, int row, Range columns, float* scales, float* biases) {
  constexpr size_t kSize = size_of(kDtype);
  int group_size = w.format.group_size;
  int count = (columns.end - columns.begin) / group_size;
  size_t at = (row * static_cast<size_t>(w.K / group_size) +
               columns.begin / group_size) *
              kSize;
  to_floats<V, kDtype>(w.scales + at, count, scales);
  if constexpr (!Q::kBiased) return;
  if (w.format.has_biases()) {
    to_floats<V, kDtype>(w.biases + at, count, biases);
    return;
  }
  typename V::F factor = V::set1(w.format.bias_of_scale());
  for (int g = 0; g < count; g += V::kLanes) {
    V::store(biases + g, V::mul(factor, V::load(scales + g)));
  }
}

// The scales and biases of one group of a strip in the packed layout, a weight
// row in each lane.
template <class V, class Q>
struct PackedParams {
  typename V::F scale = V::zero(), bias = V::zero();

  // The words of the group end at p.
  PackedParams(const uint8_t* p, QuantFormat format, Dtype dtype) {
    with_scale_dtype<Q>(dtype, [&](auto d) __attribute__((always_inline)) {
      constexpr Dtype kDtype = decltype(d)::value;
      scale = V::template load_as_float<kDtype>(p);
      if constexpr (Q::kBiased) {
        bias = format.has_biases()
                   ? V::template load_as_float<kDtype>(p + V::kLanes *
                                                               size_of(kDtype))
                   : V::mul(V::set1(format.bias_of_scale()), scale);
      }
    });
  }
};

}  // namespace
}  // namespace nibble::cpu
