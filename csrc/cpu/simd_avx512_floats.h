// The floats of simd_avx512.h: arithmetic, and conversions from and to other
// types.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"

namespace nibble::cpu {
namespace {

struct Avx512Floats {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;

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

  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
};

}  // namespace
}  // namespace nibble::cpu
