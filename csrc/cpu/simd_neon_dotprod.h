// NEON with the dot product of signed bytes (Armv8.2 DotProd).
#pragma once

#include "csrc/cpu/simd_neon.h"

namespace nibble::cpu {
namespace {

struct NeonDotprod : Neon {
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    return {dot<kBits>(sum.lo, codes.lo, x.lo),
            dot<kBits>(sum.hi, codes.hi, x.hi)};
  }

 private:
  template <int kBits>
  static int32x4_t dot(int32x4_t sum, int32x4_t codes, int32x4_t x) {
    int8x16_t a = vreinterpretq_s8_s32(x);
    int8x16_t q = vreinterpretq_s8_s32(codes);
    if constexpr (kBits == 8) {
      // As signed bytes, codes are 128 too small: twice 64.
      q = veorq_s8(q, vdupq_n_s8(-128));
      int8x16_t missing = vdupq_n_s8(64);
      sum = vdotq_s32(vdotq_s32(sum, missing, a), missing, a);
    }
    return vdotq_s32(sum, q, a);
  }
};

}  // namespace
}  // namespace nibble::cpu
