// The SIMD facade over AVX-512 (F, BW, DQ, VL). All its intrinsics are in this
// file. Include it only from files that are compiled for it.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/codes-inl.h"

namespace nibble::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  // The accumulators of a tile are weight rows x activation rows. 4 x 6 leave 8
  // of the 32 registers for weights, tables and one activation.
  static constexpr int kTileRows = 6;
  // Weight rows in a tile that decodes: up to 8 hide the latency of an FMA.
  static constexpr int decode_rows(int M) { return M <= 2 ? 8 : 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights (measured on Zen 5).
  static constexpr int kFewRows = 4 * kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = true;
  // The first E8M0 scale whose product with 2^8 is not finite.
  static constexpr int kFirstHugeScale = 247;

  // True: conversions from half read subnormal numbers in every mode.
  static bool reads_subnormals() { return true; }

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  // out[0:4] = the sums of the lanes of a, b, c and d.
  static void sum4(F a, F b, F c, F d, float* out) {
    F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    __m512d ab2 = _mm512_castps_pd(ab), cd2 = _mm512_castps_pd(cd);
    F all = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(ab2, cd2)),
                          _mm512_castpd_ps(_mm512_unpackhi_pd(ab2, cd2)));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all),
                                _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(out,
                  _mm_add_ps(_mm256_castps256_ps128(half),
                             _mm256_extractf128_ps(half, 1)));
  }

  // The sums of v[0:16] lane by lane, in the order in which sum4 adds lanes.
  static F sum_across(const F (&v)[kLanes]) {
    F quarter[4];
    for (int q = 0; q < 4; ++q) {
      const F* p = v + 4 * q;
      quarter[q] = add(add(p[0], p[2]), add(p[1], p[3]));
    }
    return add(add(quarter[0], quarter[2]), add(quarter[1], quarter[3]));
  }

  // ---- arithmetic between the products ----------------------------------
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  // NaN where b is NaN.
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F round(F v) { return _mm512_roundscale_ps(v, 0); }
  // Returns 2^n for an integral n from -126 to 127; 0 if n is -127.
  static F exp2_integral(F n) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtps_epi32(_mm512_add_ps(n, set1(127))), 23));
  }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  static float largest(F v) { return _mm512_reduce_max_ps(v); }

  // ---- 16-bit floats ----------------------------------------------------
  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    uint32_t lanes = (uint32_t{1} << count) - 1;
    if constexpr (kDtype == Dtype::kFloat32) {
      return _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), p);
    } else if constexpr (is_byte(kDtype)) {
      I bytes = _mm512_cvtepu8_epi32(
          _mm_maskz_loadu_epi8(static_cast<__mmask16>(lanes), p));
      if constexpr (kDtype == Dtype::kE4m3) return e4m3(bytes);
      // The byte is the exponent. 2^-127 is subnormal: its bits are 2^22.
      return _mm512_castsi512_ps(_mm512_max_epi32(_mm512_slli_epi32(bytes, 23),
                                                  _mm512_set1_epi32(1 << 22)));
    } else {
      __m256i v = _mm256_maskz_loadu_epi16(static_cast<__mmask16>(lanes), p);
      if constexpr (kDtype == Dtype::kFloat16) {
        return _mm512_cvtph_ps(v);
      } else {
        return _mm512_castsi512_ps(
            _mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
      }
    }
  }

  template <Dtype kDtype>
  static void store_rounded(uint8_t* p, F v, int count = kLanes) {
    __mmask16 lanes = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    if constexpr (kDtype == Dtype::kFloat32) {
      _mm512_mask_storeu_ps(p, lanes, v);
    } else if constexpr (kDtype == Dtype::kFloat16) {
      _mm256_mask_storeu_epi16(
          p, lanes, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    } else {
      // Not vcvtneps2bf16, which flushes subnormals.
      __m512i u = _mm512_castps_si512(v);
      __m512i odd =
          _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
      __m512i rounded =
          _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
      __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
      rounded =
          _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x00400000));
      _mm256_mask_storeu_epi16(
          p, lanes, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
    }
  }

  // The floats that codes in the low bits of each lane are.
  static F e2m1(I codes) {
    return _mm512_permutexvar_ps(codes,
                                 _mm512_setr_ps(0.0f,
                                                0.5f,
                                                1.0f,
                                                1.5f,
                                                2.0f,
                                                3.0f,
                                                4.0f,
                                                6.0f,
                                                -0.0f,
                                                -0.5f,
                                                -1.0f,
                                                -1.5f,
                                                -2.0f,
                                                -3.0f,
                                                -4.0f,
                                                -6.0f));
  }
  static F e4m3(I codes) {
    I magnitude = _mm512_and_si512(codes, _mm512_set1_epi32(0x7f));
    // Normal numbers get the exponent of a float. Others are integers x 2^-9.
    I normal = _mm512_add_epi32(_mm512_slli_epi32(magnitude, 20),
                                _mm512_set1_epi32(120 << 23));
    __mmask16 small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(8));
    F value = _mm512_mask_mul_ps(_mm512_castsi512_ps(normal),
                                 small,
                                 _mm512_cvtepi32_ps(magnitude),
                                 set1(0x1p-9f));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x7f));
    value = _mm512_mask_mov_ps(value, nan, set1(__builtin_nanf("")));
    return _mm512_xor_ps(
        value,
        _mm512_and_ps(_mm512_castsi512_ps(_mm512_slli_epi32(codes, 24)),
                      set1(-0.0f)));
  }

  // ---- codes ------------------------------------------------------------
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
    F first = weigh<Avx512, Q>(numbers<Q>(codes), s, b);
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

  // ---- integers: bytes of codes against bytes of activations -------------
  // Strips of 16 weight rows x activation rows of a tile: 12 integer sums.
  static constexpr int kStrips = 2;
  static constexpr int kIntTileRows = 6;
  // packed-inl.h.
  static constexpr int kRowStreams = 1;
  static constexpr int kAhead = 8 * 1024;

  static I int_zero() { return _mm512_setzero_si512(); }
  static I int_load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void int_store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I int_add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I int_or(I a, I b) { return _mm512_or_si512(a, b); }

  // Returns the first `count` words at p, then zeros.
  static I load_words(const uint8_t* p, int count) {
    return _mm512_maskz_loadu_epi32(
        static_cast<__mmask16>((uint32_t{1} << count) - 1), p);
  }

  // a and b as blocks of kBlock lanes, numbered from 0: the even blocks, one of
  // a, one of b, and so on; and the odd blocks.
  template <int kBlock>
  static I even_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm512_mask_shuffle_epi32(a, 0xaaaa, b, _MM_PERM_CCAA);
    } else if constexpr (kBlock == 2) {
      return _mm512_unpacklo_epi64(a, b);
    } else if constexpr (kBlock == 4) {
      return _mm512_mask_shuffle_i32x4(a, 0xf0f0, b, b, 0xa0);
    } else {
      return _mm512_shuffle_i32x4(a, b, 0x44);
    }
  }
  template <int kBlock>
  static I odd_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
    } else if constexpr (kBlock == 2) {
      return _mm512_unpackhi_epi64(a, b);
    } else if constexpr (kBlock == 4) {
      return _mm512_mask_shuffle_i32x4(b, 0x0f0f, a, a, 0xf5);
    } else {
      return _mm512_shuffle_i32x4(a, b, 0xee);
    }
  }

  // Returns the 4 bytes at p in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
  }

  // Code number kPart of each byte, which has 8 / kBits codes; times 2^kUp.
  template <int kBits, int kPart, int kUp = 0>
  static I byte_codes(I v) {
    constexpr int kDown = kPart * kBits - kUp;
    if constexpr (kBits == 8) {
      return v;
    } else if constexpr (kDown > 0) {
      v = _mm512_srli_epi32(v, kDown);
    } else if constexpr (kDown < 0) {
      v = _mm512_slli_epi32(v, -kDown);
    }
    return _mm512_and_si512(v, _mm512_set1_epi8(((1 << kBits) - 1) << kUp));
  }

  // The same for halves of a word, which have 16 / kBits codes.
  template <int kBits, int kPart>
  static I half_codes(I v) {
    return _mm512_and_si512(_mm512_srli_epi32(v, kPart * kBits),
                            _mm512_set1_epi16((1 << kBits) - 1));
  }

  // Bytes 0 and 2 (kOdd: 1 and 3) of each word as halves.
  template <int kOdd>
  static I byte_halves(I v) {
    return kOdd ? _mm512_srli_epi16(v, 8)
                : _mm512_and_si512(v, _mm512_set1_epi16(0xff));
  }

  // table[byte] for bytes below 16.
  static I look_up(const uint8_t (&table)[16], I bytes) {
    __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(quarter), bytes);
  }

  // code() gives numbers over this.
  template <class Q>
  static constexpr float kCodeUnit = 1;

  // The number of code kCode in each lane's panel word.
  template <class Q, int kCode>
  static F code(I words) {
    constexpr int kBits = Q::kBits;
    if constexpr (kCode > 0) {
      words = _mm512_srli_epi32(words, kCode * panel_bits(kBits));
    }
    I mask = _mm512_set1_epi32((1 << kBits) - 1);
    if constexpr (kBits < 5) {
      // vpermps reads only the low 4 bits of an index: 2 bits repeat.
      return _mm512_permutexvar_ps(
          words, numbers<Q>(_mm512_and_si512(iota(0, 1), mask)));
    } else if constexpr (kBits == 5) {
      return _mm512_permutex2var_ps(
          numbers<Q>(iota(0, 1)), words, numbers<Q>(iota(16, 1)));
    }
    return numbers<Q>(_mm512_and_si512(words, mask));
  }

  // Returns v. GCC would add integers in another order, for which it has too
  // few registers.
  static I in_order(I v) {
    asm("" : "+v"(v));
    return v;
  }

  // Each lane: sum += the products of 4 codes, less than 2^kBits, and 4
  // activations.
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    I ones = _mm512_set1_epi16(1);
    if constexpr (kBits == 8) {
      // Sums of two products must fit into 16 bits, so the highest bit is
      // multiplied separately.
      I high =
          _mm512_and_si512(_mm512_srli_epi32(codes, 7), _mm512_set1_epi8(1));
      sum = _mm512_add_epi32(sum,
                             _mm512_madd_epi16(_mm512_maddubs_epi16(high, x),
                                               _mm512_set1_epi16(128)));
      codes = _mm512_and_si512(codes, _mm512_set1_epi8(127));
    }
    return in_order(_mm512_add_epi32(
        sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones)));
  }

  // Each lane: sum += the products of 2 halves and 2 activations.
  static I dot2(I sum, I codes, I x) {
    return in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(codes, x)));
  }

  // out[d, r] = word d of rows[r], for d < count <= 16; rows of out are
  // `stride` apart.
  static void transpose(const uint8_t* const* rows,
                        int count,
                        int32_t* out,
                        int stride) {
    __mmask16 words = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    I t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      I a = _mm512_maskz_loadu_epi32(words, rows[i]);
      I b = _mm512_maskz_loadu_epi32(words, rows[i + 1]);
      t[i] = _mm512_unpacklo_epi32(a, b);
      t[i + 1] = _mm512_unpackhi_epi32(a, b);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Quarter q of u[i + c] has word 4 q + c of rows i to i + 3.
    I v[16];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      I a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x44);
      I b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x44);
      I d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xee);
      I e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xee);
      v[c] = _mm512_shuffle_i32x4(a, b, 0x88);
      v[c + 4] = _mm512_shuffle_i32x4(a, b, 0xdd);
      v[c + 8] = _mm512_shuffle_i32x4(d, e, 0x88);
      v[c + 12] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    if (count == 16) {
#pragma GCC unroll 16
      for (int d = 0; d < 16; ++d) int_store(out + d * stride, v[d]);
      return;
    }
#pragma GCC unroll 16
    for (int d = 0; d < 16; ++d) {
      if (d < count) int_store(out + d * stride, v[d]);
    }
  }

  // Returns max(best, the bits of |v|); a NaN is the greatest.
  static I max_magnitude(I best, F v) {
    return _mm512_max_epi32(best,
                            _mm512_and_si512(_mm512_castps_si512(v),
                                             _mm512_set1_epi32(0x7fffffff)));
  }

  // out[0:16] = v rounded to the nearest integers, ties to even.
  static void round_to_integers(F v, int8_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static void round_to_integers(F v, int16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
  }

 private:
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
    return Q::template numbers<Avx512>(codes);
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
