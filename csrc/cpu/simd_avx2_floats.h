// The floats of simd_avx2.h: arithmetic, and conversions from and to other
// types.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"

namespace nibble::cpu {
namespace {

struct Avx2Floats {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  // out[0:4] = the sums of the lanes of a, b, c and d.
  static void sum4(F a, F b, F c, F d, float* out) {
    F all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(
        out,
        _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  // The sums of v[0:8] lane by lane, in the order in which sum4 adds lanes.
  static F sum_across(const F (&v)[kLanes]) {
    return add(add(add(v[0], v[1]), add(v[2], v[3])),
               add(add(v[4], v[5]), add(v[6], v[7])));
  }

  // ---- arithmetic between the products ----------------------------------
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // NaN where b is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F round(F v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // Returns 2^n for an integral n from -126 to 127; 0 if n is -127.
  static F exp2_integral(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_add_ps(n, set1(127))), 23));
  }
  static float sum(F v) {
    __m128 half =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(F v) {
    __m128 half =
        _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  // ---- 16-bit floats ----------------------------------------------------
  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    alignas(32) uint8_t part[kLanes * 4];
    if (count < kLanes) {
      constexpr int kSize = size_of(kDtype);
      __m256i none = _mm256_setzero_si256();
      _mm256_store_si256(reinterpret_cast<__m256i*>(part), none);
      for (int i = 0; i < count; ++i) {
        std::memcpy(part + i * kSize, p + i * kSize, kSize);
      }
      p = part;
    }
    if constexpr (kDtype == Dtype::kFloat32) {
      return _mm256_loadu_ps(reinterpret_cast<const float*>(p));
    } else if constexpr (kDtype == Dtype::kE8m0) {
      // The byte is the exponent. 2^-127 is subnormal: its bits are 2^22.
      return _mm256_castsi256_ps(_mm256_max_epi32(
          _mm256_slli_epi32(bytes(p), 23), _mm256_set1_epi32(1 << 22)));
    } else if constexpr (kDtype == Dtype::kE4m3) {
      return e4m3(bytes(p));
    } else {
      __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      if constexpr (kDtype == Dtype::kFloat16) {
        return _mm256_cvtph_ps(v);
      } else {
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
      }
    }
  }

  template <Dtype kDtype>
  static void store_rounded(uint8_t* p, F v, int count = kLanes) {
    alignas(32) uint8_t all[kLanes * 4];
    if constexpr (kDtype == Dtype::kFloat32) {
      _mm256_store_ps(reinterpret_cast<float*>(all), v);
    } else if constexpr (kDtype == Dtype::kFloat16) {
      _mm_store_si128(reinterpret_cast<__m128i*>(all),
                      _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
    } else {
      __m256i u = _mm256_castps_si256(v);
      __m256i odd =
          _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
      __m256i rounded =
          _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
      __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x00400000));
      F nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
      rounded = _mm256_castps_si256(_mm256_blendv_ps(
          _mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan));
      rounded = _mm256_srli_epi32(rounded, 16);
      _mm_store_si128(reinterpret_cast<__m128i*>(all),
                      _mm_packus_epi32(_mm256_castsi256_si128(rounded),
                                       _mm256_extracti128_si256(rounded, 1)));
    }
    std::memcpy(p, all, count * size_of(kDtype));
  }

  // The floats that codes in the low bits of each lane are.
  static F e2m1(I codes) {
    return with_sign(_mm256_slli_epi32(codes, 28),
                     _mm256_permutevar8x32_ps(magnitudes(), codes));
  }
  static F e4m3(I codes) {
    I magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
    // Normal numbers get the exponent of a float. Others are integers x 2^-9.
    I normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20),
                                _mm256_set1_epi32(120 << 23));
    F small = mul(_mm256_cvtepi32_ps(magnitude), set1(0x1p-9f));
    I is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
    I nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    F value = _mm256_blendv_ps(
        _mm256_castsi256_ps(normal), small, _mm256_castsi256_ps(is_small));
    return with_sign(_mm256_slli_epi32(codes, 24),
                     _mm256_or_ps(value, _mm256_castsi256_ps(nan)));
  }

  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }

 protected:
  // The bytes at p, one in each lane.
  static I bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }

  static F magnitudes() { return _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6); }

  // v, negated where the highest bit of `sign` is set.
  static F with_sign(I sign, F v) {
    return _mm256_xor_ps(v,
                         _mm256_and_ps(_mm256_castsi256_ps(sign), set1(-0.0f)));
  }
};

}  // namespace
}  // namespace nibble::cpu
