// NEON with the dot product of unsigned and signed bytes (Armv8.6 I8MM).
#pragma once

#include "csrc/cpu/simd_neon.h"

namespace nibble::cpu {
namespace {

struct NeonI8mm : Neon {
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    auto dot = [](int32x4_t sum, int32x4_t codes, int32x4_t x) {
      return vusdotq_s32(
          sum, vreinterpretq_u8_s32(codes), vreinterpretq_s8_s32(x));
    };
    return {dot(sum.lo, codes.lo, x.lo), dot(sum.hi, codes.hi, x.hi)};
  }
};

}  // namespace
}  // namespace nibble::cpu
