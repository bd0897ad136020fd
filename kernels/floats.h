// Small floats: the codes and scales of the modes mxfp4, nvfp4 and mxfp8.
//
//   E2M1   sign, 2 bits of exponent, 1 of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6
//   E4M3   sign, 4 bits of exponent, 3 of mantissa: up to 448; 0x7f is NaN
//   E8M0   8 bits of exponent: 2^(byte - 127); 255 is infinite, as in MLX
//
// A code becomes a half whose exponent has the code's bits, so that it is too
// small by a constant power of two. A product in half undoes that exactly, also
// for numbers that are subnormal in half: MLX converts the same way. Two codes
// are one uint until then, so a mask or a shift serves both:
//
//   word of E2M1   [7 6 5 4][3 2 1 0]    codes 3 and 7: one pair of halfs
//   half           [s . . e e m ........]
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Code i of eight codes of E2M1 in a word.
NIBBLE_INLINE float e2m1_of(uint word, int i) {
  const int place = i % 4;  // in its half of the word
  const uint sign = word << (12 - 4 * place);
  const uint rest = place == 3 ? word >> 3 : word << (9 - 4 * (place % 3));
  const uint pair = (sign & 0x80008000u) | (rest & 0x0e000e00u);
  return float(as_type<half2>(pair)[i / 4] * half(16384.0f));
}

// Bits of two halfs, 2^-8 times the E4M3 codes whose sign is `sign` and whose
// other bits are `rest`. Only the largest magnitude carries into the exponent.
NIBBLE_INLINE uint halfs_of_e4m3(uint sign, uint rest) {
  const uint magnitude = rest & 0x3f803f80u;
  const uint nan = (magnitude + 0x00800080u) & 0x40004000u;
  return (sign & 0x80008000u) | magnitude | nan;
}

// Code i of four codes of E4M3 in a word.
NIBBLE_INLINE float e4m3_of(uint word, int i) {
  const bool upper = i % 2 != 0;  // byte of its half of the word
  const uint pair = halfs_of_e4m3(upper ? word : word << 8,
                                  upper ? word >> 1 : word << 7);
  return float(as_type<half2>(pair)[i / 2] * half(256.0f));
}

NIBBLE_INLINE float e4m3_of(uchar byte) {
  return e4m3_of(uint(byte), 0);
}

// 2^-127 is subnormal, and a GPU may take it for zero.
NIBBLE_INLINE float e8m0_of(uchar byte) {
  return as_type<float>(max(uint(byte) << 23, 0x00400000u));
}

}  // namespace nibble
