// The bit order of packed codes. No other file knows it.
//
// A row of w is a little-endian bit stream: code i takes the bits
// [i * bits, (i + 1) * bits). At 4 bits, a word holds eight codes:
//
//   bit  31    28 27                 8 7     4 3     0
//        [code 7] [code 6] ... [code 2][code 1][code 0]
//
// 32 codes fill `bits` whole words at every width. At 3, 5 and 6 bits some
// codes straddle two words.
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

NIBBLE_INLINE constexpr int run_codes(int bits) {
  return nibble_run_codes(bits);
}

// Words that `codes` codes fill; they begin a word.
NIBBLE_INLINE constexpr int words_of(int codes, int bits) {
  return codes * bits / 32;
}

// True if code i of a run lies in two words.
template <int bits>
NIBBLE_INLINE constexpr bool straddles(int i) {
  return i * bits % 32 + bits > 32;
}

// Bits by which code_in_place() leaves code i shifted to the left.
template <int bits>
NIBBLE_INLINE constexpr int place(int i) {
  return straddles<bits>(i) ? 0 : i * bits % 32;
}

// 2^-place: undoes this shift in floating point, exactly.
template <int bits>
NIBBLE_INLINE constexpr float unplace(int i) {
  return 1.0f / float(1u << place<bits>(i));
}

// Code i of a run, times 2^place(i). A mask extracts it without a shift,
// because Apple GPUs shift at a quarter of the rate of a mask or of a
// multiplication. Only a code that straddles two words needs shifts.
template <int bits>
NIBBLE_INLINE uint code_in_place(const thread uint* words, int i) {
  constexpr uint mask = (1u << bits) - 1u;
  const int word = i * bits / 32;
  const int shift = i * bits % 32;
  if (straddles<bits>(i)) {
    return (words[word] >> shift) | ((words[word + 1] << (32 - shift)) & mask);
  }
  return words[word] & (mask << shift);
}

// Code i of a run.
template <int bits>
NIBBLE_INLINE uint unpack(const thread uint* words, int i) {
  return code_in_place<bits>(words, i) >> place<bits>(i);
}

// Codes of a row that a lane of a vector kernel reads at a time: 8 bytes, as in
// MLX at 4 and 8 bits, or the shortest run. At 1 bit they are 4 bytes, because
// the codes of 8 would be more than a group of 32.
NIBBLE_INLINE constexpr int lane_codes(int bits) {
  return bits > 1 && run_codes(bits) < 64 / bits ? 64 / bits : run_codes(bits);
}

// Reads `count` words by the widest loads that their alignment allows. `from`
// is a multiple of `count` words away from a 16-byte boundary.
template <int count>
NIBBLE_INLINE void load_words(const device uint* from, thread uint* words) {
  if (count % 4 == 0) {
    for (int i = 0; i < count; i += 4) {
      const uint4 v = *(const device uint4*)(from + i);
      words[i] = v.x;
      words[i + 1] = v.y;
      words[i + 2] = v.z;
      words[i + 3] = v.w;
    }
  } else if (count % 2 == 0) {
    for (int i = 0; i < count; i += 2) {
      const uint2 v = *(const device uint2*)(from + i);
      words[i] = v.x;
      words[i + 1] = v.y;
    }
  } else {
    for (int i = 0; i < count; ++i) {
      words[i] = from[i];
    }
  }
}

}  // namespace nibble
