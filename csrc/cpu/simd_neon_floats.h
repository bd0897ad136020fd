// The floats of simd_neon.h: arithmetic, and conversions from and to other
// types.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"

namespace nibble::cpu {
namespace {

struct NeonFloats {
  struct F {
    float32x4_t lo, hi;
  };
  struct I {
    int32x4_t lo, hi;
  };
  static constexpr int kLanes = 8;

  static F zero() { return set1(0); }
  static F set1(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
  static F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static void store(float* p, F v) {
    vst1q_f32(p, v.lo);
    vst1q_f32(p + 4, v.hi);
  }
  static F fma(F a, F b, F c) {
    return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
  }

  // out[0:4] = the sums of the lanes of a, b, c and d.
  static void sum4(F a, F b, F c, F d, float* out) {
    float32x4_t ab = vpaddq_f32(vaddq_f32(a.lo, a.hi), vaddq_f32(b.lo, b.hi));
    float32x4_t cd = vpaddq_f32(vaddq_f32(c.lo, c.hi), vaddq_f32(d.lo, d.hi));
    vst1q_f32(out, vpaddq_f32(ab, cd));
  }

  // The sums of v[0:8] lane by lane, in the order in which sum4 adds lanes.
  static F sum_across(const F (&v)[kLanes]) {
    return add(add(add(v[0], v[4]), add(v[1], v[5])),
               add(add(v[2], v[6]), add(v[3], v[7])));
  }

  // ---- arithmetic between the products ----------------------------------
  static F add(F a, F b) {
    return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)};
  }
  static F mul(F a, F b) {
    return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)};
  }
  static F div(F a, F b) {
    return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)};
  }
  // Returns b if one of them is NaN.
  static F max(F a, F b) {
    return {vbslq_f32(vcgtq_f32(a.lo, b.lo), a.lo, b.lo),
            vbslq_f32(vcgtq_f32(a.hi, b.hi), a.hi, b.hi)};
  }
  static F min(F a, F b) {
    return {vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo),
            vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi)};
  }
  static F round(F v) { return {vrndnq_f32(v.lo), vrndnq_f32(v.hi)}; }
  // Returns 2^n for an integral n from -126 to 127; 0 if n is -127.
  static F exp2_integral(F n) {
    auto power = [](float32x4_t n) {
      int32x4_t exponent = vcvtq_s32_f32(vaddq_f32(n, vdupq_n_f32(127)));
      return vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23));
    };
    return {power(n.lo), power(n.hi)};
  }
  static float sum(F v) { return vaddvq_f32(vaddq_f32(v.lo, v.hi)); }
  static float largest(F v) { return vmaxvq_f32(vmaxq_f32(v.lo, v.hi)); }

  // ---- 16-bit floats ----------------------------------------------------
  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    uint8_t part[kLanes * 4] = {};
    if (count < kLanes) {
      std::memcpy(part, p, count * size_of(kDtype));
      p = part;
    }
    if constexpr (kDtype == Dtype::kFloat32) {
      return {vreinterpretq_f32_u8(vld1q_u8(p)),
              vreinterpretq_f32_u8(vld1q_u8(p + 16))};
    } else if constexpr (is_byte(kDtype)) {
      uint16x8_t v = vmovl_u8(vld1_u8(p));
      uint32x4_t lo = vmovl_u16(vget_low_u16(v)), hi = vmovl_high_u16(v);
      if constexpr (kDtype == Dtype::kE4m3) {
        return {e4m3_half(lo), e4m3_half(hi)};
      }
      // The byte is the exponent. 2^-127 is subnormal: its bits are 2^22.
      auto power = [](uint32x4_t byte) {
        return vreinterpretq_f32_u32(
            vmaxq_u32(vshlq_n_u32(byte, 23), vdupq_n_u32(1 << 22)));
      };
      return {power(lo), power(hi)};
    } else if constexpr (kDtype == Dtype::kFloat16) {
      float16x8_t v = vreinterpretq_f16_u8(vld1q_u8(p));
      return {vcvt_f32_f16(vget_low_f16(v)), vcvt_high_f32_f16(v)};
    } else {
      uint16x8_t v = vreinterpretq_u16_u8(vld1q_u8(p));
      return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(v), 16)),
              vreinterpretq_f32_u32(vshll_high_n_u16(v, 16))};
    }
  }

  template <Dtype kDtype>
  static void store_rounded(uint8_t* p, F v, int count = kLanes) {
    uint8_t all[kLanes * 4];
    if constexpr (kDtype == Dtype::kFloat32) {
      vst1q_u8(all, vreinterpretq_u8_f32(v.lo));
      vst1q_u8(all + 16, vreinterpretq_u8_f32(v.hi));
    } else if constexpr (kDtype == Dtype::kFloat16) {
      float16x8_t rounded = vcvt_high_f16_f32(vcvt_f16_f32(v.lo), v.hi);
      vst1q_u8(all, vreinterpretq_u8_f16(rounded));
    } else {
      uint16x8_t rounded =
          vcombine_u16(round_to_bfloat(v.lo), round_to_bfloat(v.hi));
      vst1q_u8(all, vreinterpretq_u8_u16(rounded));
    }
    std::memcpy(p, all, count * size_of(kDtype));
  }

  // The floats that codes in the low bits of each lane are.
  static F e2m1(I codes) {
    auto floats = [](int32x4_t codes) {
      // Bytes of twice the values. The one of each lane's code becomes its
      // highest byte; the conversion divides by 2^25.
      constexpr int8_t kTwice[16] = {
          0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
      int8x16_t twice =
          vqtbl1q_s8(vld1q_s8(kTwice), vreinterpretq_u8_s32(codes));
      uint32x4_t value = vreinterpretq_u32_f32(
          vcvtq_n_f32_s32(vshlq_n_s32(vreinterpretq_s32_s8(twice), 24), 25));
      // Code 8 is -0, which no integer is.
      uint32x4_t sign = vshlq_n_u32(vreinterpretq_u32_s32(codes), 28);
      return vreinterpretq_f32_u32(
          vorrq_u32(value, vandq_u32(sign, vdupq_n_u32(0x80000000))));
    };
    return {floats(codes.lo), floats(codes.hi)};
  }
  static F e4m3(I codes) {
    return {e4m3_half(vreinterpretq_u32_s32(codes.lo)),
            e4m3_half(vreinterpretq_u32_s32(codes.hi))};
  }

  static F to_float(I v) { return {vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi)}; }

 protected:
  static float32x4_t e4m3_half(uint32x4_t codes) {
    uint32x4_t magnitude = vandq_u32(codes, vdupq_n_u32(0x7f));
    // Normal numbers get the exponent of a float. Others are integers x 2^-9.
    uint32x4_t normal =
        vaddq_u32(vshlq_n_u32(magnitude, 20), vdupq_n_u32(120 << 23));
    uint32x4_t small = vreinterpretq_u32_f32(vcvtq_n_f32_u32(magnitude, 9));
    uint32x4_t value =
        vbslq_u32(vcltq_u32(magnitude, vdupq_n_u32(8)), small, normal);
    uint32x4_t nan = vceqq_u32(magnitude, vdupq_n_u32(0x7f));
    uint32x4_t sign =
        vandq_u32(vshlq_n_u32(codes, 24), vdupq_n_u32(0x80000000));
    return vreinterpretq_f32_u32(vorrq_u32(vorrq_u32(value, nan), sign));
  }

  static uint16x4_t round_to_bfloat(float32x4_t v) {
    uint32x4_t u = vreinterpretq_u32_f32(v);
    uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    uint32x4_t rounded = vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    uint32x4_t quiet = vorrq_u32(u, vdupq_n_u32(0x00400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
  }
};

}  // namespace
}  // namespace nibble::cpu
