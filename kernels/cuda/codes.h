// Packed codes of a row of w, as integers in pairs of activations' type.
//
// Row: a little-endian bit stream, as kernels/packing.h shows. A warp takes a
// block of a row at a time; lane t of the four lanes of a row takes the t-th
// quarter of it, a run. Runs may begin inside a word.
#pragma once

#include "kernels/cuda/types.h"

namespace nibble {

// A lane's share of a block of codes.
template <int kBits, int kBlock>
struct Run {
  static constexpr int kCodes = kBlock / 4;
  static constexpr int kBlockWords = kBlock * kBits / 32;
  // Bits of a run, and the words that hold them once they begin a word.
  static constexpr int kRunBits = kCodes * kBits;
  static constexpr int kWords = (kRunBits + 31) / 32;
  static constexpr bool kWhole = kRunBits % 32 == 0;
  // Words that a run touches, at most.
  static NIBBLE_DEVICE constexpr int loads() {
    int most = 0;
    for (int t = 0; t < 4; ++t) {
      int words = (t * kRunBits % 32 + kRunBits + 31) / 32;
      most = words > most ? words : most;
    }
    return most;
  }
  static constexpr int kLoads = loads();

  uint32 words[kLoads];

  // The word of a block in which the run of lane t begins.
  static NIBBLE_DEVICE int first_word(int t) { return t * kRunBits / 32; }

  // Loads the run of lane t of block i; `from` is that of block 0.
  NIBBLE_DEVICE void load(const uint32* from, int i, int t) {
    const uint32* p = from + i * kBlockWords;
    if constexpr (kWhole && kWords % 4 == 0) {
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(p + i));
        words[i] = four.x;
        words[i + 1] = four.y;
        words[i + 2] = four.z;
        words[i + 3] = four.w;
      }
    } else if constexpr (kWhole && kWords % 2 == 0) {
#pragma unroll
      for (int i = 0; i < kWords; i += 2) {
        const uint2 two = __ldg(reinterpret_cast<const uint2*>(p + i));
        words[i] = two.x;
        words[i + 1] = two.y;
      }
    } else {
      // No word of the next row: there may be none.
      const int last = kBlockWords - 1 - first_word(t);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        words[i] = __ldg(p + (kWhole || i == 0 ? i : min(i, last)));
      }
    }
  }

  // The run, beginning at bit 0.
  NIBBLE_DEVICE void align(uint32 (&to)[kWords], int t) const {
    const int shift = t * kRunBits % 32;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      to[i] = kWhole           ? words[i]
              : i + 1 < kLoads ? __funnelshift_r(words[i], words[i + 1], shift)
                               : words[i] >> shift;
    }
  }
};

// True if the pairs of eight codes are (0, 4), (1, 5), (2, 6), (3, 7): a shift
// and a mask then make a pair. Else they are (0, 1), (2, 3), (4, 5), (6, 7).
template <int kBits>
constexpr bool kFarPairs = kBits == 2 || kBits == 4;

// The bits of `words` from `position`, moved to bit `at`, other bits around
// them.
template <int kBits, int kWords>
NIBBLE_DEVICE uint32 moved(const uint32 (&words)[kWords],
                           int position,
                           int at) {
  const int word = position / 32;
  const int shift = position % 32 - at;
  if (position % 32 + kBits > 32) {
    // shift > 0: the code begins in one of the last bits of the word.
    return __funnelshift_r(words[word], words[word + 1], shift);
  }
  return shift >= 0 ? words[word] >> shift : words[word] << -shift;
}

// Codes 8 * chunk to 8 * chunk + 7 of a run, in four pairs of a Place of T's.
template <typename T, typename Place, int kBits, int kWords>
NIBBLE_DEVICE void unpack(uint32 (&pairs)[4],
                          const uint32 (&words)[kWords],
                          int chunk) {
  constexpr int kShift = Place::kShift;
  constexpr uint32 kLow = ((1u << kBits) - 1) << kShift;
  constexpr uint32 kBoth = kLow * 0x00010001u;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kFarPairs<kBits>) {
      const uint32 bits =
          kBits == 4
              ? words[chunk]
              : __byte_perm(words[chunk / 2], 0, chunk % 2 ? 0x4342 : 0x4140);
      const int shift = kBits * i - kShift;
      pairs[i] = masked<kBoth, Place::kAround>(shift >= 0 ? bits >> shift
                                                          : bits << -shift);
    } else if constexpr (kBits < 8) {
      const int first = (8 * chunk + 2 * i) * kBits;
      pairs[i] =
          masked<kLow, Place::kAround>(moved<kBits>(words, first, kShift)) |
          (moved<kBits>(words, first + kBits, kShift + 16) & (kLow << 16));
    } else {
      pairs[i] =
          __byte_perm(words[2 * chunk + i / 2], 0, i % 2 ? 0x4342 : 0x4140);
      if constexpr (Place::kFits && Place::kAround != 0) {
        pairs[i] |= Place::kAround;
      }
      if constexpr (!Place::kFits) {
        // 16 * high - 128, then + 128 + low: both are exact.
        const uint32 high =
            T::fma(masked<0x000f000f, 0x43004300>(pairs[i] >> 4),
                   0x41804180,
                   0xc508c508);
        pairs[i] =
            T::fma(masked<0x000f000f, 0x43004300>(pairs[i]), T::kOnes, high);
      }
    }
  }
}

// Floats are copied bit by bit into floats of T, which are then smaller by a
// power of two: 1 becomes 2^(bias of the short type - bias of T). Subnormal
// numbers become subnormal ones.

// Eight floats of 4 bits (E2M1), whose bias is 1, in kFarPairs.
template <typename T>
NIBBLE_DEVICE void unpack_e2m1(uint32 (&pairs)[4], uint32 word) {
  constexpr int kShift = 13 - T::kMantissa;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32 codes = word << (12 - 4 * i);  // signs at the top
    pairs[i] = (codes & 0x80008000) | (codes & 0x70007000) >> kShift;
  }
}

// The two floats of 8 bits (E4M3) in the upper bytes of the halves. Their bias
// is 7.
template <typename T>
NIBBLE_DEVICE uint32 e4m3(uint32 codes) {
  constexpr int kShift = 11 - T::kMantissa;
  const uint32 magnitudes = codes & 0x7f007f00;
  // 0x7f is NaN: all bits of the exponent are set.
  const uint32 nans = (magnitudes + 0x01000100) & 0x80008000;
  return (codes & 0x80008000) | magnitudes >> kShift | (nans - (nans >> 8));
}

// The words of eight codes that begin at a whole byte, bit `shift`, of the
// first of two words. They are at most 64 bits.
NIBBLE_DEVICE void eight_codes(uint32 (&words)[2],
                               uint32 first,
                               uint32 second,
                               int shift) {
  words[0] = __funnelshift_r(first, second, shift);
  words[1] = second >> shift;
}

// Eight neighbours from unpack()'s pairs.
template <int kBits>
NIBBLE_DEVICE uint4 in_turn(const uint32 (&pairs)[4]) {
  if constexpr (kFarPairs<kBits>) {
    return make_uint4(__byte_perm(pairs[0], pairs[1], 0x5410),
                      __byte_perm(pairs[2], pairs[3], 0x5410),
                      __byte_perm(pairs[0], pairs[1], 0x7632),
                      __byte_perm(pairs[2], pairs[3], 0x7632));
  } else {
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
}

// Eight neighbouring activations, in the order of unpack()'s pairs.
template <int kBits>
NIBBLE_DEVICE void order(uint32 (&pairs)[4], const uint4& x) {
  if constexpr (kFarPairs<kBits>) {
    pairs[0] = __byte_perm(x.x, x.z, 0x5410);
    pairs[1] = __byte_perm(x.x, x.z, 0x7632);
    pairs[2] = __byte_perm(x.y, x.w, 0x5410);
    pairs[3] = __byte_perm(x.y, x.w, 0x7632);
  } else {
    pairs[0] = x.x;
    pairs[1] = x.y;
    pairs[2] = x.z;
    pairs[3] = x.w;
  }
}

}  // namespace nibble
