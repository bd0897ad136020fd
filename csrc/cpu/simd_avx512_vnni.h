// AVX-512 with VNNI: one instruction multiplies and adds 4 bytes a lane.
#pragma once

#include "csrc/cpu/simd_avx512.h"

namespace nibble::cpu {
namespace {

struct Avx512Vnni : Avx512 {
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }

  template <int kBits>
  static I shift_left(I v) {
    return _mm512_slli_epi32(v, kBits);
  }

  // high[0:16] and low[0:16] = the bytes of v rounded to the nearest integers,
  // ties to even: 256 * high + low, both signed.
  static void round_to_pairs(F v, int8_t* high, int8_t* low) {
    I whole = _mm512_cvtps_epi32(v);
    I rounded = _mm512_add_epi32(whole, _mm512_set1_epi32(128));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(high),
                     _mm512_cvtepi32_epi8(_mm512_srai_epi32(rounded, 8)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(low),
                     _mm512_cvtepi32_epi8(whole));
  }
};

}  // namespace
}  // namespace nibble::cpu
