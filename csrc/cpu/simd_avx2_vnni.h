// AVX2 with AVX-VNNI: one instruction multiplies and adds 4 bytes a lane.
#pragma once

#include "csrc/cpu/simd_avx2.h"

namespace nibble::cpu {
namespace {

struct Avx2Vnni : Avx2 {
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    return _mm256_dpbusd_avx_epi32(sum, codes, x);
  }

  static I dot2(I sum, I codes, I x) {
    return _mm256_dpwssd_avx_epi32(sum, codes, x);
  }
};

}  // namespace
}  // namespace nibble::cpu
