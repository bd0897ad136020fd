// Integer products of words of codes, one weight row a lane, and activations.
#pragma once

#include "csrc/cpu/int8_quantize-inl.h"

namespace nibble::cpu {
namespace {

// Part number kPart of a word of codes, as integers as wide as activations.
template <class V, class Q, class A, int kPart>
[[gnu::always_inline]] inline typename V::I part_of(typename V::I word) {
  constexpr int kStored = panel_bits(Q::kBits);
  if constexpr (sizeof(A) == 1) {
    return Q::template bytes<V>(V::template byte_codes<kStored, kPart>(word));
  } else {
    return Q::template halves<V, kStored, kPart>(word);
  }
}

// Returns sum + the products of a part of a word and activations in each lane.
template <class V, class Q, class A>
[[gnu::always_inline]] inline typename V::I add_dots(typename V::I sum,
                                                     typename V::I codes,
                                                     typename V::I x) {
  if constexpr (sizeof(A) == 1) {
    return V::template dot4<Q::kByteBits>(sum, codes, x);
  } else {
    return V::dot2(sum, codes, x);
  }
}

// sums [kStrips, kM] += the products of one word in each lane of kStrips
// vectors and kM rows of activations, `stride` apart.
template <class V, class Q, class A, int kPart, int kStrips, int kM>
[[gnu::always_inline]] inline void add_part(
    const typename V::I (&words)[kStrips],
    const A* x,
    size_t stride,
    typename V::I (&sums)[kStrips][kM]) {
  typename V::I codes[kStrips];
#pragma GCC unroll 4
  for (int s = 0; s < kStrips; ++s) {
    codes[s] = part_of<V, Q, A, kPart>(words[s]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    typename V::I a = V::broadcast4(x + m * stride + kPartCodes<A> * kPart);
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) {
      sums[s][m] = add_dots<V, Q, A>(sums[s][m], codes[s], a);
    }
  }
  if constexpr (kPart + 1 < kParts<A, Q::kBits>) {
    add_part<V, Q, A, kPart + 1>(words, x, stride, sums);
  }
}

}  // namespace
}  // namespace nibble::cpu
