// Integer products of words of codes, one weight row a lane, and activations.
#pragma once

#include "csrc/cpu/int8_quantize-inl.h"

namespace nibble::cpu {
namespace {

// sums [kStrips, kM] += the products of one word in each lane of kStrips
// vectors and kM rows of activations, `stride` apart.
template <class V, class Q, int kPart, int kStrips, int kM>
[[gnu::always_inline]] inline void add_part(
    const typename V::I (&words)[kStrips],
    const int8_t* x,
    size_t stride,
    typename V::I (&sums)[kStrips][kM]) {
  constexpr int kStored = panel_bits(Q::kBits);
  typename V::I codes[kStrips];
#pragma GCC unroll 4
  for (int s = 0; s < kStrips; ++s) {
    codes[s] =
        Q::template bytes<V>(V::template byte_codes<kStored, kPart>(words[s]));
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    typename V::I a = V::broadcast4(x + m * stride + 4 * kPart);
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) {
      sums[s][m] = V::template dot4<Q::kByteBits>(sums[s][m], codes[s], a);
    }
  }
  if constexpr ((kPart + 1) * kStored < 8) {
    add_part<V, Q, kPart + 1>(words, x, stride, sums);
  }
}

}  // namespace
}  // namespace nibble::cpu
