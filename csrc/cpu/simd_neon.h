// The SIMD facade over NEON, as every 64-bit Arm has it: products of integers
// here, floats and codes in the files of those names. A vector of 8 lanes is
// two registers: 8 codes of every width are whole bytes.
#pragma once

#include "csrc/cpu/simd_neon_codes.h"

namespace nibble::cpu {
namespace {

struct Neon : NeonCodes {
  // 4 weight rows x 3 activation rows: 24 of 32 registers.
  static constexpr int kTileRows = 3;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int) { return 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;

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
};

}  // namespace
}  // namespace nibble::cpu
