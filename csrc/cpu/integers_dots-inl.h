// Integer products of words of codes, one weight row a lane, and activations.
#pragma once

#include "csrc/cpu/integers_quantize-inl.h"

namespace nibble::cpu {
namespace {

// The integer sums of rows of x with kStrips strips of weight rows.
template <class V, class A, int kStrips, int kM>
using DotSums = typename V::I[kPlanes<A>][kStrips][kM];

template <class V, class A, int kStrips, int kM>
[[gnu::always_inline]] inline void clear(DotSums<V, A, kStrips, kM>& sums) {
#pragma GCC unroll 2
  for (auto& plane : sums) {
#pragma GCC unroll 4
    for (auto& strip : plane) {
#pragma GCC unroll 8
      for (auto& sum : strip) sum = V::int_zero();
    }
  }
}

// Returns the sum of activations from the sums of their planes.
template <class V, class A>
[[gnu::always_inline]] inline typename V::I join(typename V::I first,
                                                 typename V::I second) {
  if constexpr (kPlanes<A> == 2) {
    return V::int_add(V::template shift_left<8>(first), second);
  } else {
    return first;
  }
}

// Part number kPart of a word of codes, as integers as wide as activations.
template <class V, class Q, class A, int kPart>
[[gnu::always_inline]] inline typename V::I part_of(typename V::I word) {
  constexpr int kStored = panel_bits(Q::kBits);
  if constexpr (sizeof(Code<A>) == 1) {
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
  if constexpr (sizeof(Code<A>) == 1) {
    return V::template dot4<Q::kByteBits>(sum, codes, x);
  } else {
    return V::dot2(sum, codes, x);
  }
}

// sums += the products of one word in each lane of kStrips vectors and kM rows
// of activations.
template <class V, class Q, class A, int kPart, int kStrips, int kM>
[[gnu::always_inline]] inline void add_part(
    const typename V::I (&words)[kStrips],
    const Code<A>* x,
    DotSums<V, A, kStrips, kM>& sums) {
  typename V::I codes[kStrips];
#pragma GCC unroll 4
  for (int s = 0; s < kStrips; ++s) {
    codes[s] = part_of<V, Q, A, kPart>(words[s]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const Code<A>* row =
        x + m * QuantizedRows::kStride<A> + kPartCodes<A> * kPart;
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes<A>; ++plane) {
      typename V::I a = V::broadcast4(row + plane * kRunCodes);
#pragma GCC unroll 4
      for (int s = 0; s < kStrips; ++s) {
        auto& sum = sums[plane][s][m];
        sum = add_dots<V, Q, A>(sum, codes[s], a);
      }
    }
  }
  if constexpr (kPart + 1 < kParts<A, Q::kBits>) {
    add_part<V, Q, A, kPart + 1>(words, x, sums);
  }
}

}  // namespace
}  // namespace nibble::cpu
