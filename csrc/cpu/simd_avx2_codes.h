// The codes of simd_avx2.h: from packed codes to values.
#pragma once

#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/simd_avx2_floats.h"

namespace nibble::cpu {
namespace {

struct Avx2Codes : Avx2Floats {
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = true;
  // The first E8M0 scale whose product with 2^120 is not finite.
  static constexpr int kFirstHugeScale = 135;

  // False if this thread takes subnormal numbers for zero.
  static bool reads_subnormals() { return (_mm_getcsr() & 0x40) == 0; }

  // Scale and bias. For E2M1, whose values are few, the scaled magnitudes.
  template <class Q>
  struct Group {
    F first, second;
  };

  template <class Q>
  static Group<Q> group(float scale, float bias) {
    if constexpr (!Q::kBiased && Q::kBits == 4) {
      return {mul(magnitudes(), set1(scale)), zero()};
    } else if constexpr (!Q::kBiased) {
      return {set1(Q::kIsRegular ? 0x1p120f * scale : scale), zero()};
    }
    return {set1(scale), set1(bias)};
  }

  // Returns the values of the next 8 codes, kBits bytes at p.
  template <class Q>
  static F decode(const uint8_t* p, const Group<Q>& g) {
    if constexpr (!Q::kBiased && Q::kBits == 4) {
      // Each code at the top of its lane, its sign as that of a float.
      I top = _mm256_sllv_epi32(_mm256_set1_epi32(read<uint32_t>(p)),
                                _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0));
      return with_sign(
          top, _mm256_permutevar8x32_ps(g.first, _mm256_srli_epi32(top, 28)));
    } else if constexpr (!Q::kBiased) {
      __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
      if constexpr (Q::kIsRegular) {
        // Sign, exponent and mantissa at their places in a float: 2^-120 x.
        I scaled =
            _mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepi8_epi32(bytes), 20),
                             _mm256_set1_epi32(static_cast<int>(0x87f00000)));
        return mul(_mm256_castsi256_ps(scaled), g.first);
      }
      // Half has one more bit of exponent, and 2^-8 is the difference.
      __m128i halves = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
      __m128i top = _mm_set1_epi16(0x3f80);
      __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(halves, top), top);
      halves = _mm_or_si128(
          _mm_and_si128(halves, _mm_set1_epi16(static_cast<short>(0xbfff))),
          nan);
      return mul(mul(_mm256_cvtph_ps(halves), set1(256)), g.first);
    } else {
      return fma(numbers<Q>(codes<Q::kBits>(p)), g.first, g.second);
    }
  }

  template <int kBits>
  static constexpr bool kNatural = true;

  template <int kBits>
  static F to_code_order(F v) {
    return v;
  }

  // Returns the place in code order of a vector's code number `at`.
  template <int kBits>
  static constexpr int lane_of(int at) {
    return at;
  }

  template <int kBits>
  static F to_natural_order(F v) {
    return v;
  }

 protected:
  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<Avx2Codes>(codes);
  }

  template <typename Word>
  static int32_t read(const uint8_t* p) {
    Word word;
    std::memcpy(&word, p, sizeof(word));
    return static_cast<int32_t>(word);
  }

  template <int kBits>
  static __m256i codes(const uint8_t* p) {
    if constexpr (kBits == 8) {
      return _mm256_cvtepu8_epi32(
          _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    } else {
      __m256i bit = _mm256_mullo_epi32(
          _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(kBits));
      __m256i words;
      if constexpr (kBits == 1) {
        words = _mm256_set1_epi32(p[0]);
      } else if constexpr (kBits == 2) {
        words = _mm256_set1_epi32(read<uint16_t>(p));
      } else if constexpr (kBits == 3) {
        words = _mm256_set1_epi32(read<uint16_t>(p) | p[2] << 16);
      } else if constexpr (kBits == 4) {
        words = _mm256_set1_epi32(read<uint32_t>(p));
      } else {
        // Lanes whose code extends beyond the first 4 bytes read the last 4:
        // all but the first 32 / kBits lanes.
        static_assert(kBits > 4);
        constexpr int kSkipped = 8 * (kBits - 4);
        constexpr int kLate = 0xff << 32 / kBits & 0xff;
        words =
            _mm256_blend_epi32(_mm256_set1_epi32(read<uint32_t>(p)),
                               _mm256_set1_epi32(read<uint32_t>(p + kBits - 4)),
                               kLate);
        bit = _mm256_blend_epi32(
            bit, _mm256_sub_epi32(bit, _mm256_set1_epi32(kSkipped)), kLate);
      }
      return _mm256_and_si256(_mm256_srlv_epi32(words, bit),
                              _mm256_set1_epi32((1 << kBits) - 1));
    }
  }
};

}  // namespace
}  // namespace nibble::cpu
