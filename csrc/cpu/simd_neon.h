// The SIMD facade over NEON, as every 64-bit Arm has it. All its intrinsics are
// in this file. A vector of 8 lanes is two registers: 8 codes of every width
// are whole bytes.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/codes-inl.h"

namespace nibble::cpu {
namespace {

struct Neon {
  struct F {
    float32x4_t lo, hi;
  };
  struct I {
    int32x4_t lo, hi;
  };
  static constexpr int kLanes = 8;
  // 4 weight rows x 3 activation rows: 24 of 32 registers.
  static constexpr int kTileRows = 3;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int) { return 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = false;

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

  // ---- codes ------------------------------------------------------------
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

  // ---- integers: bytes of codes against bytes of activations -------------
  // Strips of 8 weight rows x activation rows of a tile: 16 registers.
  static constexpr int kStrips = 2;
  static constexpr int kIntTileRows = 4;
  // packed-inl.h.
  static constexpr int kRowStreams = 1;
  static constexpr int kAhead = 8 * 1024;

  static I int_zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static I int_load(const int32_t* p) {
    return {vld1q_s32(p), vld1q_s32(p + 4)};
  }
  static void int_store(int32_t* p, I v) {
    vst1q_s32(p, v.lo);
    vst1q_s32(p + 4, v.hi);
  }
  static F to_float(I v) { return {vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi)}; }
  static I int_add(I a, I b) {
    return {vaddq_s32(a.lo, b.lo), vaddq_s32(a.hi, b.hi)};
  }

  static I int_or(I a, I b) {
    return {vorrq_s32(a.lo, b.lo), vorrq_s32(a.hi, b.hi)};
  }

  // Returns the first `count` words at p, then zeros.
  static I load_words(const uint8_t* p, int count) {
    if (count >= kLanes) {
      return {words(p), words(p + 16)};
    }
    int32_t part[kLanes] = {};
    std::memcpy(part, p, 4 * count);
    return int_load(part);
  }

  // a and b as blocks of kBlock lanes, numbered from 0: the even blocks, one of
  // a, one of b, and so on; and the odd blocks.
  template <int kBlock>
  static I even_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return {vtrn1q_s32(a.lo, b.lo), vtrn1q_s32(a.hi, b.hi)};
    } else if constexpr (kBlock == 2) {
      return {even_pairs(a.lo, b.lo), even_pairs(a.hi, b.hi)};
    } else {
      return {a.lo, b.lo};
    }
  }
  template <int kBlock>
  static I odd_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return {vtrn2q_s32(a.lo, b.lo), vtrn2q_s32(a.hi, b.hi)};
    } else if constexpr (kBlock == 2) {
      return {odd_pairs(a.lo, b.lo), odd_pairs(a.hi, b.hi)};
    } else {
      return {a.hi, b.hi};
    }
  }

  // Returns the 4 bytes at p in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return {vdupq_n_s32(word), vdupq_n_s32(word)};
  }

  // Code number kPart of each byte, which has 8 / kBits codes; times 2^kUp.
  template <int kBits, int kPart, int kUp = 0>
  static I byte_codes(I v) {
    if constexpr (kBits == 8) {
      return v;
    }
    constexpr int kDown = kPart * kBits - kUp;
    uint8x16_t mask = vdupq_n_u8(((1 << kBits) - 1) << kUp);
    auto codes = [&](int32x4_t half) {
      uint8x16_t bytes = vreinterpretq_u8_s32(half);
      if constexpr (kDown > 0) {
        bytes = vshrq_n_u8(bytes, kDown);
      } else if constexpr (kDown < 0) {
        bytes = vshlq_n_u8(bytes, -kDown);
      }
      return vreinterpretq_s32_u8(vandq_u8(bytes, mask));
    };
    return {codes(v.lo), codes(v.hi)};
  }

  // table[byte] for bytes below 16.
  static I look_up(const uint8_t (&table)[16], I bytes) {
    uint8x16_t t = vld1q_u8(table);
    auto found = [&](int32x4_t v) {
      return vreinterpretq_s32_u8(vqtbl1q_u8(t, vreinterpretq_u8_s32(v)));
    };
    return {found(bytes.lo), found(bytes.hi)};
  }

  // code() gives numbers over this.
  template <class Q>
  static constexpr float kCodeUnit = 1;

  // The number of code kCode in each lane's panel word.
  template <class Q, int kCode>
  static F code(I words) {
    constexpr int kBits = Q::kBits;
    auto codes = [](int32x4_t half) {
      uint32x4_t v = vreinterpretq_u32_s32(half);
      if constexpr (kCode > 0) {
        v = vshrq_n_u32(v, kCode * panel_bits(kBits));
      }
      return vreinterpretq_s32_u32(vandq_u32(v, vdupq_n_u32((1 << kBits) - 1)));
    };
    return numbers<Q>({codes(words.lo), codes(words.hi)});
  }

  // Each lane: sum += the products of 4 codes, less than 2^kBits, and 4
  // activations. A single product fits 16 bits.
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    auto dot = [](int32x4_t sum, int32x4_t codes, int32x4_t x) {
      uint8x16_t q = vreinterpretq_u8_s32(codes);
      int8x16_t a = vreinterpretq_s8_s32(x);
      int16x8_t lo = vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(q))),
                               vmovl_s8(vget_low_s8(a)));
      int16x8_t hi =
          vmulq_s16(vreinterpretq_s16_u16(vmovl_high_u8(q)), vmovl_high_s8(a));
      return vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(lo), vpaddlq_s16(hi)));
    };
    return {dot(sum.lo, codes.lo, x.lo), dot(sum.hi, codes.hi, x.hi)};
  }

  // out[d, r] = word d of rows[r], for d < count <= 8; rows of out are
  // `stride` apart.
  static void transpose(const uint8_t* const* rows,
                        int count,
                        int32_t* out,
                        int stride) {
    int d = 0;
    for (; d + 4 <= count; d += 4) {
      for (int r = 0; r < kLanes; r += 4) {
        int32x4_t a = words(rows[r] + 4 * d), b = words(rows[r + 1] + 4 * d);
        int32x4_t c = words(rows[r + 2] + 4 * d),
                  e = words(rows[r + 3] + 4 * d);
        int64x2_t ab_even = vreinterpretq_s64_s32(vtrn1q_s32(a, b));
        int64x2_t ab_odd = vreinterpretq_s64_s32(vtrn2q_s32(a, b));
        int64x2_t ce_even = vreinterpretq_s64_s32(vtrn1q_s32(c, e));
        int64x2_t ce_odd = vreinterpretq_s64_s32(vtrn2q_s32(c, e));
        int32_t* to = out + d * stride + r;
        put(to, vtrn1q_s64(ab_even, ce_even));
        put(to + stride, vtrn1q_s64(ab_odd, ce_odd));
        put(to + 2 * stride, vtrn2q_s64(ab_even, ce_even));
        put(to + 3 * stride, vtrn2q_s64(ab_odd, ce_odd));
      }
    }
    for (; d < count; ++d) {
      for (int r = 0; r < kLanes; ++r) {
        std::memcpy(out + d * stride + r, rows[r] + 4 * d, 4);
      }
    }
  }

  // Returns max(best, the bits of |v|); a NaN is the greatest.
  static I max_magnitude(I best, F v) {
    return {vmaxq_s32(best.lo, vreinterpretq_s32_f32(vabsq_f32(v.lo))),
            vmaxq_s32(best.hi, vreinterpretq_s32_f32(vabsq_f32(v.hi)))};
  }

  // out[0:8] = v rounded to the nearest integers, ties to even.
  static void round_to_integers(F v, int8_t* out) {
    int16x8_t words = vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(v.lo)),
                                   vqmovn_s32(vcvtnq_s32_f32(v.hi)));
    vst1_s8(out, vqmovn_s16(words));
  }

 private:
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

  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<Neon>(codes);
  }

  template <typename Word>
  static uint32_t read(const uint8_t* p) {
    Word word;
    std::memcpy(&word, p, sizeof(word));
    return word;
  }

  static int32x4_t words(const uint8_t* p) {
    return vreinterpretq_s32_u8(vld1q_u8(p));
  }

  static int32x4_t even_pairs(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(
        vtrn1q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }
  static int32x4_t odd_pairs(int32x4_t a, int32x4_t b) {
    return vreinterpretq_s32_s64(
        vtrn2q_s64(vreinterpretq_s64_s32(a), vreinterpretq_s64_s32(b)));
  }

  static void put(int32_t* p, int64x2_t v) {
    vst1q_s32(p, vreinterpretq_s32_s64(v));
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
