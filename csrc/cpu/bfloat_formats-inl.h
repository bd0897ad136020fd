// Codes that are floats as right tiles of bfloat16: their scale included, a
// weight has at most 6 significant bits.
#pragma once

#include "csrc/cpu/dispatch-inl.h"

namespace nibble::cpu {
namespace {

// Scales E8M0 with which the products of codes and of x are normal numbers,
// with ample room: 2^-63 to 2^63.
constexpr int kLeastE8m0 = 64, kMostE8m0 = 190;

// decode<V>() writes the rows of a right tile that one group of 16 weight rows
// has, and returns false if bfloat16 cannot express them all. `words` are the
// lanes' words, kStride bytes apart.

template <class V, size_t kStride>
typename V::I word_at(const uint8_t* words, int d) {
  return V::int_load(reinterpret_cast<const int32_t*>(words + d * kStride));
}

// True if lanes whose scales are outside the range have zeros only.
template <class V, size_t kStride>
[[gnu::noinline]] bool are_zeros(typename V::Scales scales,
                                 const uint8_t* words,
                                 int count,
                                 int bits) {
  typename V::I all = V::int_zero();
  for (int d = 0; d < count; ++d) {
    all = V::int_or(all, word_at<V, kStride>(words, d));
  }
  return (V::outside(scales, kLeastE8m0, kMostE8m0) & V::any_of(all, bits)) ==
             0 &&
         V::equal(scales, 255) == 0;
}

struct Mxfp4Tiles {
  static constexpr int kBits = 4, kGroup = 32;
  static constexpr float kUnit = 1;  // of x

  template <class V, size_t kStride>
  static bool decode(const uint8_t* words,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I below = V::exponents_below(s, V::kMostE2m1);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d, out += 4 * V::kLanes) {
      typename V::I word = word_at<V, kStride>(words, d);
      V::int_store(out, V::template scaled_e2m1<0>(word, below));
      V::int_store(out + V::kLanes, V::template scaled_e2m1<1>(word, below));
      V::int_store(out + 2 * V::kLanes,
                   V::template scaled_e2m1<2>(word, below));
      V::int_store(out + 3 * V::kLanes,
                   V::template scaled_e2m1<3>(word, below));
    }
    return V::outside(s, kLeastE8m0, kMostE8m0) == 0 ||
           are_zeros<V, kStride>(s, words, 4, 0x77777777);
  }
};

// Weights over 2^112 are float16 read as bfloat16, and x has the factor.
struct Nvfp4Tiles {
  static constexpr int kBits = 4, kGroup = 16;
  static constexpr float kUnit = 0x1p112f;

  template <class V, size_t kStride>
  static bool decode(const uint8_t* words,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I halves = V::halves_of_scales(s);
#pragma GCC unroll 2
    for (int d = 0; d < 2; ++d, out += 4 * V::kLanes) {
      typename V::I word = word_at<V, kStride>(words, d);
      V::int_store(out, V::template scaled_e2m1_of_halves<0>(word, halves));
      V::int_store(out + V::kLanes,
                   V::template scaled_e2m1_of_halves<1>(word, halves));
      V::int_store(out + 2 * V::kLanes,
                   V::template scaled_e2m1_of_halves<2>(word, halves));
      V::int_store(out + 3 * V::kLanes,
                   V::template scaled_e2m1_of_halves<3>(word, halves));
    }
    return V::nan_e4m3(s) == 0;
  }
};

struct Mxfp8Tiles {
  static constexpr int kBits = 8, kGroup = 32;
  static constexpr float kUnit = 1;
  static constexpr int kWords = 8;

  template <class V, size_t kStride, bool kOrdinary>
  [[gnu::always_inline]] static inline void decode_as(const uint8_t* words,
                                                      typename V::I over,
                                                      int32_t* out) {
#pragma GCC unroll 8
    for (int d = 0; d < kWords; ++d, out += 2 * V::kLanes) {
      typename V::I word = word_at<V, kStride>(words, d);
      V::int_store(out, V::template scaled_e4m3<0, kOrdinary>(word, over));
      V::int_store(out + V::kLanes,
                   V::template scaled_e4m3<1, kOrdinary>(word, over));
    }
  }

  template <class V, size_t kStride>
  static bool decode(const uint8_t* words,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I over = V::exponents_over(s, 7);
    typename V::I seen = V::int_zero();
#pragma GCC unroll 8
    for (int d = 0; d < kWords; ++d) {
      seen = V::e4m3_class(seen, word_at<V, kStride>(words, d));
    }
    decode_as<V, kStride, true>(words, over, out);
    if (V::are_ordinary(seen) && V::outside(s, kLeastE8m0, kMostE8m0) == 0) {
      return true;
    }
    return decode_rare<V, kStride>(words, s, out);
  }

  template <class V, size_t kStride>
  [[gnu::noinline]] static bool decode_rare(const uint8_t* words,
                                            typename V::Scales s,
                                            int32_t* out) {
    decode_as<V, kStride, false>(words, V::exponents_over(s, 7), out);
    for (int d = 0; d < kWords; ++d) {
      if (V::nan_codes(word_at<V, kStride>(words, d))) return false;
    }
    return V::outside(s, kLeastE8m0, kMostE8m0) == 0 ||
           are_zeros<V, kStride>(s, words, kWords, 0x7f7f7f7f);
  }
};

// Calls fn with the type of the format, if it is one of floats.
template <typename Fn>
void with_tiles(QuantFormat format, Fn&& fn) {
  if (format.mode == Mode::kMxfp4) return fn(Mxfp4Tiles{});
  if (format.mode == Mode::kNvfp4) return fn(Nvfp4Tiles{});
  if (format.mode == Mode::kMxfp8) return fn(Mxfp8Tiles{});
}

}  // namespace
}  // namespace nibble::cpu
