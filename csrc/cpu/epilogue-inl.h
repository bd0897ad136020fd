// From fp32 sums to rows of a result: addends, SwiGLU and the one rounding.
#pragma once

#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

template <class V>
void add_and_round(Dtype dtype,
                   const float* sums,
                   int count,
                   const uint8_t* bias,
                   const uint8_t* residual,
                   uint8_t* y) {
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    constexpr int kSize = size_of(kDtype);
    for (int i = 0; i < count; i += V::kLanes) {
      int n = smaller(count - i, V::kLanes);
      typename V::F sum = V::load(sums + i);
      for (const uint8_t* addend : {bias, residual}) {
        if (addend) {
          sum = V::add(
              sum, V::template load_as_float<kDtype>(addend + i * kSize, n));
        }
      }
      V::template store_rounded<kDtype>(y + i * kSize, sum, n);
    }
  });
}

template <class V>
void swiglu_and_round(
    Dtype dtype, const float* gate, const float* up, int count, uint8_t* y) {
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    for (int i = 0; i < count; i += V::kLanes) {
      int n = smaller(count - i, V::kLanes);
      typename V::F silu_of_gate = silu<V>(V::load(gate + i));
      V::template store_rounded<kDtype>(
          y + i * size_of(kDtype), V::mul(silu_of_gate, V::load(up + i)), n);
    }
  });
}

}  // namespace
}  // namespace nibble::cpu
