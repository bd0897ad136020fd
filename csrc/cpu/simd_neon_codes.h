// The codes of simd_neon.h: from packed codes to values.
#pragma once

#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/simd_neon_floats.h"

namespace nibble::cpu {
namespace {

struct NeonCodes : NeonFloats {
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = false;

  template <class Q>
  struct Group {
    float32x4_t scale, bias;
  };

  template <class Q>
  static Group<Q> group(float scale, float bias) {
    return {vdupq_n_f32(scale), vdupq_n_f32(bias)};
  }

  // Returns the values of the next 8 codes, kBits bytes at p.
  template <class Q>
  static F decode(const uint8_t* p, const Group<Q>& g) {
    constexpr int kBits = Q::kBits;
    uint32x4_t lo, hi;
    if constexpr (kBits == 8) {
      uint16x8_t v = vmovl_u8(vld1_u8(p));
      lo = vmovl_u16(vget_low_u16(v));
      hi = vmovl_high_u16(v);
    } else {
      // Codes 0 to 3 begin in byte 0; 4 to 7 are in the last 4 bytes.
      constexpr int kSkipped = kBits > 4 ? 8 * (kBits - 4) : 0;
      uint32_t first, last;
      if constexpr (kBits == 1) {
        first = last = p[0];
      } else if constexpr (kBits == 2) {
        first = last = read<uint16_t>(p);
      } else if constexpr (kBits == 3) {
        first = last = read<uint16_t>(p) | p[2] << 16;
      } else {
        first = read<uint32_t>(p);
        last = read<uint32_t>(p + kSkipped / 8);
      }
      constexpr int32_t kLo[] = {0, -kBits, -2 * kBits, -3 * kBits};
      constexpr int kFourth = kSkipped - 4 * kBits;
      constexpr int32_t kHi[] = {
          kFourth, kFourth - kBits, kFourth - 2 * kBits, kFourth - 3 * kBits};
      uint32x4_t mask = vdupq_n_u32((1 << kBits) - 1);
      lo = vandq_u32(vshlq_u32(vdupq_n_u32(first), vld1q_s32(kLo)), mask);
      hi = vandq_u32(vshlq_u32(vdupq_n_u32(last), vld1q_s32(kHi)), mask);
    }
    F v = numbers<Q>({vreinterpretq_s32_u32(lo), vreinterpretq_s32_u32(hi)});
    if constexpr (!Q::kBiased) {
      return {vmulq_f32(v.lo, g.scale), vmulq_f32(v.hi, g.scale)};
    }
    return {vfmaq_f32(g.bias, v.lo, g.scale), vfmaq_f32(g.bias, v.hi, g.scale)};
  }

  template <int kBits>
  static constexpr bool kNatural = true;

  template <int kBits>
  static F to_code_order(F v) {
    return v;
  }

  // Returns the place in code order of a vector's code number `at`.
  template <int kBits>
  static constexpr int lane_of(int at) {
    return at;
  }

  template <int kBits>
  static F to_natural_order(F v) {
    return v;
  }

 protected:
  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<NeonCodes>(codes);
  }

  template <typename Word>
  static uint32_t read(const uint8_t* p) {
    Word word;
    std::memcpy(&word, p, sizeof(word));
    return word;
  }
};

}  // namespace
}  // namespace nibble::cpu
