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

  static I dot2(I sum, I codes, I x) {
    return _mm512_dpwssd_epi32(sum, codes, x);
  }
};

}  // namespace
}  // namespace nibble::cpu
