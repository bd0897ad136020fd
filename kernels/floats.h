// Small floats: the codes and scales of the modes mxfp4, nvfp4 and mxfp8.
//
//   E2M1   sign, 2 bits of exponent, 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6
//   E4M3   sign, 4 bits of exponent, 3 of mantissa: up to 448; 0x7f is NaN
//   E8M0   8 bits of exponent: 2^(byte - 127); 255 is infinite, as in MLX
//
// A code becomes a half whose exponent has the code's bits, so that it is too
// small by a constant power of two. A product in half undoes that exactly, also
// for numbers that are subnormal in half: MLX converts the same way. Until
// then, two codes are one uint, and a mask or a shift serves both:
//
//   word of E2M1   [7 6 5 4][3 2 1 0]    codes 3 and 7 are one pair of halfs
//   half           [s . . e e m ........]
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Eight codes of E2M1: the whole word, decoded at once, because a compiler
// would decode each code of a pair alone if it saw them one by one.
struct E2m1Word {
  half2 pairs[4];  // 2^-14 times codes p and p + 4

  E2m1Word() = default;
  NIBBLE_INLINE E2m1Word(const thread uint* words, int first) {
    const uint word = words[first / 8];
#pragma clang loop unroll(full)
    for (int p = 0; p < 4; ++p) {
      const uint sign = word << (12 - 4 * p);
      const uint rest = p == 3 ? word >> 3 : word << (9 - 4 * (p % 3));
      pairs[p] = as_type<half2>((sign & 0x80008000u) | (rest & 0x0e000e00u));
    }
  }

  // Code i of the eight.
  NIBBLE_INLINE float code(int i) const thread {
    return float(pairs[i % 4][i / 4] * half(16384.0f));
  }
};

// Bits of two halfs, 2^-8 times the E4M3 codes whose sign is `sign` and whose
// other bits are `rest`. Only the largest magnitude carries into the exponent.
NIBBLE_INLINE uint halfs_of_e4m3(uint sign, uint rest) {
  const uint magnitude = rest & 0x3f803f80u;
  const uint nan = (magnitude + 0x00800080u) & 0x40004000u;
  return (sign & 0x80008000u) | magnitude | nan;
}

// Four codes of E4M3: a word.
struct E4m3Word {
  half2 pairs[2];  // 2^-8 times codes p and p + 2

  E4m3Word() = default;
  NIBBLE_INLINE E4m3Word(const thread uint* words, int first) {
    const uint word = words[first / 4];
    pairs[0] = as_type<half2>(halfs_of_e4m3(word << 8, word << 7));
    pairs[1] = as_type<half2>(halfs_of_e4m3(word, word >> 1));
  }

  // Code i of the four.
  NIBBLE_INLINE float code(int i) const thread {
    return float(pairs[i % 2][i / 2] * half(256.0f));
  }
};

NIBBLE_INLINE float e4m3_of(uchar byte) {
  const uint pair = halfs_of_e4m3(uint(byte) << 8, uint(byte) << 7);
  return float(as_type<half2>(pair)[0] * half(256.0f));
}

// 2^-127 is subnormal, and a GPU may take it for zero.
NIBBLE_INLINE float e8m0_of(uchar byte) {
  return as_type<float>(max(uint(byte) << 23, 0x00400000u));
}

}  // namespace nibble
