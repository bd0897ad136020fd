// The SIMD facade over AVX2, FMA and F16C. Every intrinsic of these is in this
// file; include it only from files compiled for them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"

namespace nibble::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int kLanes = 8;
  // 4 weight rows x 3 activation rows: 12 of 16 registers.
  static constexpr int kTileRows = 3;
  // Weight rows of a tile that decodes.
  static constexpr int decode_rows(int) { return 4; }
  // Up to here, decoding again for each tile is faster than storing what was
  // decoded.
  static constexpr int kFewRows = kTileRows;

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  // out[0:4] = the sum of the lanes of each.
  static void sum4(F a, F b, F c, F d, float* out) {
    F all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(
        out,
        _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  // ---- 16-bit floats ----------------------------------------------------
  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    alignas(16) uint8_t part[kLanes * 4];
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

  // ---- codes ------------------------------------------------------------
  template <int kBits>
  struct Group {
    F scale, bias;
  };

  template <int kBits>
  static Group<kBits> group(float scale, float bias) {
    return {set1(scale), set1(bias)};
  }

  // The values of the next 8 codes, kBits bytes at p.
  template <int kBits>
  static F decode(const uint8_t* p, const Group<kBits>& g) {
    return fma(_mm256_cvtepi32_ps(codes<kBits>(p)), g.scale, g.bias);
  }

  template <int kBits>
  static constexpr bool kNatural = true;

  template <int kBits>
  static F to_code_order(F v) {
    return v;
  }

  template <int kBits>
  static F to_natural_order(F v) {
    return v;
  }

 private:
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
      if constexpr (kBits == 2) {
        words = _mm256_set1_epi32(read<uint16_t>(p));
      } else if constexpr (kBits == 3) {
        words = _mm256_set1_epi32(read<uint16_t>(p) | p[2] << 16);
      } else if constexpr (kBits == 4) {
        words = _mm256_set1_epi32(read<uint32_t>(p));
      } else {
        // Lanes whose code reaches beyond the first 4 bytes read the last 4.
        constexpr int kSkipped = 8 * (kBits - 4);
        constexpr int kLate = kBits == 5 ? 0xc0 : 0xe0;
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
