// The codes of simd_avx512.h: from packed codes to values.
#pragma once

#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/simd_avx512_floats.h"

namespace nibble::cpu {
namespace {

struct Avx512Codes : Avx512Floats {
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = true;
  // The first E8M0 scale whose product with 2^8 is not finite.
  static constexpr int kFirstHugeScale = 247;

  // True: conversions from half read subnormal numbers in every mode.
  static bool reads_subnormals() { return true; }

  // Turns a group's codes into values. Up to 4 bits, a register has all values
  // of the group, so that decoding is one permutation; with 5 bits, two
  // registers have them. Wider codes use scale and bias.
  template <class Q>
  struct Group {
    F first, second;
  };

  template <class Q>
  static Group<Q> group(float scale, float bias) {
    constexpr int kBits = Q::kBits;
    F s = set1(scale), b = set1(bias);
    if constexpr (!Q::kBiased && kBits == 8) {
      return {set1(Q::kIsRegular ? 256 * scale : scale), b};
    } else if constexpr (kBits > 5) {
      return {s, b};
    }
    // vpermps reads only the low 4 bits of an index: 2 and 3 bits repeat.
    constexpr int kMask = (1 << kBits) - 1;
    I codes = _mm512_and_si512(iota(0, 1), _mm512_set1_epi32(kMask));
    F first = weigh<Avx512Codes, Q>(numbers<Q>(codes), s, b);
    if constexpr (kBits < 5) {
      return {first, first};
    }
    return {first, fma(numbers<Q>(iota(16, 1)), s, b)};
  }

  // Returns the values of the next 16 codes, 2 * kBits bytes at p, in code
  // order.
  template <class Q>
  static F decode(const uint8_t* p, const Group<Q>& g) {
    constexpr int kBits = Q::kBits;
    if constexpr (kBits == 8) {
      __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      if constexpr (!Q::kBiased) {
        return mul(halves_of<Q::kIsRegular>(bytes), g.first);
      }
      return fma(numbers<Q>(_mm512_cvtepu8_epi32(bytes)), g.first, g.second);
    }
    __m512i codes = shifted_codes<kBits>(p);
    if constexpr (kBits < 5) {
      return _mm512_permutexvar_ps(codes, g.first);
    } else if constexpr (kBits == 5) {
      return _mm512_permutex2var_ps(g.first, codes, g.second);
    } else {
      codes = _mm512_and_si512(codes, _mm512_set1_epi32((1 << kBits) - 1));
      return fma(numbers<Q>(codes), g.first, g.second);
    }
  }

  // Code order is natural except for 4 bits. There, a broadcast of 64 bits puts
  // code (j % 2) * 8 + j / 2 into lane j.
  template <int kBits>
  static constexpr bool kNatural = kBits != 4;

  template <int kBits>
  static F to_code_order(F v) {
    if constexpr (kNatural<kBits>) {
      return v;
    }
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15),
        v);
  }

  // Returns the place in code order of a vector's code number `at`.
  template <int kBits>
  static constexpr int lane_of(int at) {
    return kNatural<kBits> ? at : at % 8 * 2 + at / 8;
  }

  template <int kBits>
  static F to_natural_order(F v) {
    if constexpr (kNatural<kBits>) {
      return v;
    }
    return _mm512_permutexvar_ps(
        _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15),
        v);
  }

 protected:
  // e4m3() of 16 bytes. Half has one more bit of exponent, and 2^-8 is the
  // difference, which is left if the codes are regular.
  template <bool kRegular>
  static F halves_of(__m128i bytes) {
    __m256i halves = _mm256_slli_epi16(_mm256_cvtepi8_epi16(bytes), 7);
    __m256i value =
        _mm256_and_si256(halves, _mm256_set1_epi16(static_cast<short>(0xbfff)));
    if constexpr (kRegular) return _mm512_cvtph_ps(value);
    __m256i top = _mm256_set1_epi16(0x3f80);
    __m256i nan = _mm256_cmpeq_epi16(_mm256_and_si256(halves, top), top);
    return mul(_mm512_cvtph_ps(_mm256_or_si256(value, nan)), set1(256));
  }

  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<Avx512Codes>(codes);
  }

  static __m512i iota(int start, int step) {
    __m512i lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(start),
                            _mm512_mullo_epi32(lanes, _mm512_set1_epi32(step)));
  }

  // Returns each lane's code in its low bits; the bits above are undefined.
  template <int kBits>
  static __m512i shifted_codes(const uint8_t* p) {
    if constexpr (kBits == 1) {
      uint16_t word;
      std::memcpy(&word, p, sizeof(word));
      return _mm512_srlv_epi32(_mm512_set1_epi32(word), iota(0, 1));
    } else if constexpr (kBits == 2) {
      int32_t word;
      std::memcpy(&word, p, sizeof(word));
      return _mm512_srlv_epi32(_mm512_set1_epi32(word), iota(0, 2));
    } else if constexpr (kBits == 4) {
      int64_t words;
      std::memcpy(&words, p, sizeof(words));
      return _mm512_srlv_epi32(
          _mm512_set1_epi64(words),
          _mm512_setr_epi32(
              0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28));
    } else {
      // 16 codes are kBits 16-bit words. Each lane takes 4 bytes, from the byte
      // in which its code begins. Bytes beyond the end are zero.
      __m512i bytes =
          _mm512_broadcast_i32x4(_mm_maskz_loadu_epi16((1 << kBits) - 1, p));
      __m512i bit = iota(0, kBits);
      __m512i byte = _mm512_srli_epi32(bit, 3);
      __m512i picks = _mm512_add_epi32(
          _mm512_mullo_epi32(byte, _mm512_set1_epi32(0x01010101)),
          _mm512_set1_epi32(0x03020100));
      return _mm512_srlv_epi32(_mm512_shuffle_epi8(bytes, picks),
                               _mm512_and_si512(bit, _mm512_set1_epi32(7)));
    }
  }
};

}  // namespace
}  // namespace nibble::cpu
