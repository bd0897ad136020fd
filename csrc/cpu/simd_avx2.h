// The SIMD facade over AVX2, FMA and F16C. All their intrinsics are in this
// file. Include it only from files that are compiled for them.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/codes-inl.h"

namespace nibble::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  // 4 weight rows x 3 activation rows: 12 of 16 registers.
  static constexpr int kTileRows = 3;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int) { return 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 8;
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = true;
  // The first E8M0 scale whose product with 2^120 is not finite.
  static constexpr int kFirstHugeScale = 135;

  // False if this thread takes subnormal numbers for zero.
  static bool reads_subnormals() { return (_mm_getcsr() & 0x40) == 0; }

  static F zero() { return _mm256_setzero_ps(); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  // out[0:4] = the sums of the lanes of a, b, c and d.
  static void sum4(F a, F b, F c, F d, float* out) {
    F all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    _mm_storeu_ps(
        out,
        _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
  }

  // The sums of v[0:8] lane by lane, in the order in which sum4 adds lanes.
  static F sum_across(const F (&v)[kLanes]) {
    return add(add(add(v[0], v[1]), add(v[2], v[3])),
               add(add(v[4], v[5]), add(v[6], v[7])));
  }

  // ---- arithmetic between the products ----------------------------------
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  // NaN where b is NaN.
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F round(F v) {
    return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  // Returns 2^n for an integral n from -126 to 127; 0 if n is -127.
  static F exp2_integral(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtps_epi32(_mm256_add_ps(n, set1(127))), 23));
  }
  static float sum(F v) {
    __m128 half =
        _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static float largest(F v) {
    __m128 half =
        _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  // ---- 16-bit floats ----------------------------------------------------
  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    alignas(32) uint8_t part[kLanes * 4];
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
    } else if constexpr (kDtype == Dtype::kE8m0) {
      // The byte is the exponent. 2^-127 is subnormal: its bits are 2^22.
      return _mm256_castsi256_ps(_mm256_max_epi32(
          _mm256_slli_epi32(bytes(p), 23), _mm256_set1_epi32(1 << 22)));
    } else if constexpr (kDtype == Dtype::kE4m3) {
      return e4m3(bytes(p));
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

  // The floats that codes in the low bits of each lane are.
  static F e2m1(I codes) {
    return with_sign(_mm256_slli_epi32(codes, 28),
                     _mm256_permutevar8x32_ps(magnitudes(), codes));
  }
  static F e4m3(I codes) {
    I magnitude = _mm256_and_si256(codes, _mm256_set1_epi32(0x7f));
    // Normal numbers get the exponent of a float. Others are integers x 2^-9.
    I normal = _mm256_add_epi32(_mm256_slli_epi32(magnitude, 20),
                                _mm256_set1_epi32(120 << 23));
    F small = mul(_mm256_cvtepi32_ps(magnitude), set1(0x1p-9f));
    I is_small = _mm256_cmpgt_epi32(_mm256_set1_epi32(8), magnitude);
    I nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x7f));
    F value = _mm256_blendv_ps(
        _mm256_castsi256_ps(normal), small, _mm256_castsi256_ps(is_small));
    return with_sign(_mm256_slli_epi32(codes, 24),
                     _mm256_or_ps(value, _mm256_castsi256_ps(nan)));
  }

  // ---- codes ------------------------------------------------------------
  // Scale and bias. For E2M1, whose values are few, the scaled magnitudes.
  template <class Q>
  struct Group {
    F first, second;
  };

  template <class Q>
  static Group<Q> group(float scale, float bias) {
    if constexpr (!Q::kBiased && Q::kBits == 4) {
      return {mul(magnitudes(), set1(scale)), zero()};
    } else if constexpr (!Q::kBiased) {
      return {set1(Q::kIsRegular ? 0x1p120f * scale : scale), zero()};
    }
    return {set1(scale), set1(bias)};
  }

  // Returns the values of the next 8 codes, kBits bytes at p.
  template <class Q>
  static F decode(const uint8_t* p, const Group<Q>& g) {
    if constexpr (!Q::kBiased && Q::kBits == 4) {
      // Each code at the top of its lane, its sign as that of a float.
      I top = _mm256_sllv_epi32(_mm256_set1_epi32(read<uint32_t>(p)),
                                _mm256_setr_epi32(28, 24, 20, 16, 12, 8, 4, 0));
      return with_sign(
          top, _mm256_permutevar8x32_ps(g.first, _mm256_srli_epi32(top, 28)));
    } else if constexpr (!Q::kBiased) {
      __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
      if constexpr (Q::kIsRegular) {
        // Sign, exponent and mantissa at their places in a float: 2^-120 x.
        I scaled =
            _mm256_and_si256(_mm256_slli_epi32(_mm256_cvtepi8_epi32(bytes), 20),
                             _mm256_set1_epi32(static_cast<int>(0x87f00000)));
        return mul(_mm256_castsi256_ps(scaled), g.first);
      }
      // Half has one more bit of exponent, and 2^-8 is the difference.
      __m128i halves = _mm_slli_epi16(_mm_cvtepi8_epi16(bytes), 7);
      __m128i top = _mm_set1_epi16(0x3f80);
      __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(halves, top), top);
      halves = _mm_or_si128(
          _mm_and_si128(halves, _mm_set1_epi16(static_cast<short>(0xbfff))),
          nan);
      return mul(mul(_mm256_cvtph_ps(halves), set1(256)), g.first);
    } else {
      return fma(numbers<Q>(codes<Q::kBits>(p)), g.first, g.second);
    }
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
  // Strips of 8 weight rows x activation rows of a tile.
  static constexpr int kStrips = 2;
  static constexpr int kIntTileRows = 3;
  // packed-inl.h.
  static constexpr int kRowStreams = 1;
  static constexpr int kAhead = 8 * 1024;

  static I int_zero() { return _mm256_setzero_si256(); }
  static I int_load(const int32_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static void int_store(int32_t* p, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
  }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I int_add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I int_or(I a, I b) { return _mm256_or_si256(a, b); }

  // Returns the first `count` words at p, then zeros.
  static I load_words(const uint8_t* p, int count) {
    if (count >= kLanes) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    return _mm256_maskload_epi32(reinterpret_cast<const int*>(p),
                                 first_lanes(count));
  }

  // a and b as blocks of kBlock lanes, numbered from 0: the even blocks, one of
  // a, one of b, and so on; and the odd blocks.
  template <int kBlock>
  static I even_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm256_blend_epi32(a, _mm256_shuffle_epi32(b, 0xa0), 0xaa);
    } else if constexpr (kBlock == 2) {
      return _mm256_unpacklo_epi64(a, b);
    } else {
      return _mm256_permute2x128_si256(a, b, 0x20);
    }
  }
  template <int kBlock>
  static I odd_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm256_blend_epi32(_mm256_shuffle_epi32(a, 0xf5), b, 0xaa);
    } else if constexpr (kBlock == 2) {
      return _mm256_unpackhi_epi64(a, b);
    } else {
      return _mm256_permute2x128_si256(a, b, 0x31);
    }
  }

  // Returns the 4 bytes at p in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
  }

  // Code number kPart of each byte, which has 8 / kBits codes; times 2^kUp.
  template <int kBits, int kPart, int kUp = 0>
  static I byte_codes(I v) {
    constexpr int kDown = kPart * kBits - kUp;
    if constexpr (kBits == 8) {
      return v;
    } else if constexpr (kDown > 0) {
      v = _mm256_srli_epi32(v, kDown);
    } else if constexpr (kDown < 0) {
      v = _mm256_slli_epi32(v, -kDown);
    }
    return _mm256_and_si256(v, _mm256_set1_epi8(((1 << kBits) - 1) << kUp));
  }

  // The same for halves of a word, which have 16 / kBits codes.
  template <int kBits, int kPart>
  static I half_codes(I v) {
    return _mm256_and_si256(_mm256_srli_epi32(v, kPart * kBits),
                            _mm256_set1_epi16((1 << kBits) - 1));
  }

  // Bytes 0 and 2 (kOdd: 1 and 3) of each word as halves.
  template <int kOdd>
  static I byte_halves(I v) {
    return kOdd ? _mm256_srli_epi16(v, 8)
                : _mm256_and_si256(v, _mm256_set1_epi16(0xff));
  }

  // table[byte] for bytes below 16.
  static I look_up(const uint8_t (&table)[16], I bytes) {
    __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(half), bytes);
  }

  // code() gives numbers over this.
  template <class Q>
  static constexpr float kCodeUnit = !Q::kBiased && Q::kBits == 4 ? 0.5f : 1;

  // The number of code kCode in each lane's panel word.
  template <class Q, int kCode>
  static F code(I words) {
    constexpr int kBits = Q::kBits;
    if constexpr (!Q::kBiased && kBits == 4) {
      // Signed bytes of four codes, found together.
      static constexpr uint8_t kTwice[16] = {
          0, 1, 2, 3, 4, 6, 8, 12, 0, 255, 254, 253, 252, 250, 248, 244};
      I four = look_up(kTwice, byte_codes<4, kCode % 2>(words));
      I top = _mm256_slli_epi32(four, 24 - kCode / 2 * 8);
      return to_float(_mm256_srai_epi32(top, 24));
    }
    return numbers<Q>(
        _mm256_and_si256(_mm256_srli_epi32(words, kCode * panel_bits(kBits)),
                         _mm256_set1_epi32((1 << kBits) - 1)));
  }

  // Returns v. GCC would add integers in another order, for which it has too
  // few registers.
  static I in_order(I v) {
    asm("" : "+x"(v));
    return v;
  }

  // Each lane: sum += the products of 4 codes, less than 2^kBits, and 4
  // activations.
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    I ones = _mm256_set1_epi16(1);
    if constexpr (kBits == 8) {
      // Sums of two products must fit into 16 bits, so the highest bit is
      // multiplied separately.
      I high =
          _mm256_and_si256(_mm256_srli_epi32(codes, 7), _mm256_set1_epi8(1));
      sum = _mm256_add_epi32(sum,
                             _mm256_madd_epi16(_mm256_maddubs_epi16(high, x),
                                               _mm256_set1_epi16(128)));
      codes = _mm256_and_si256(codes, _mm256_set1_epi8(127));
    }
    return in_order(_mm256_add_epi32(
        sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, x), ones)));
  }

  // Each lane: sum += the products of 2 halves and 2 activations.
  static I dot2(I sum, I codes, I x) {
    return in_order(_mm256_add_epi32(sum, _mm256_madd_epi16(codes, x)));
  }

  // out[d, r] = word d of rows[r], for d < count <= 8; rows of out are
  // `stride` apart.
  static void transpose(const uint8_t* const* rows,
                        int count,
                        int32_t* out,
                        int stride) {
    I words = first_lanes(count);
    I t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
      I a = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows[i]), words);
      I b = _mm256_maskload_epi32(reinterpret_cast<const int*>(rows[i + 1]),
                                  words);
      t[i] = _mm256_unpacklo_epi32(a, b);
      t[i + 1] = _mm256_unpackhi_epi32(a, b);
    }
    for (int i = 0; i < 8; i += 4) {
      u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Half h of u[i + c] has word 4 h + c of rows i to i + 3.
    for (int c = 0; c < 4 && c < count; ++c) {
      int_store(out + c * stride,
                _mm256_permute2x128_si256(u[c], u[4 + c], 0x20));
      if (c + 4 < count) {
        int_store(out + (c + 4) * stride,
                  _mm256_permute2x128_si256(u[c], u[4 + c], 0x31));
      }
    }
  }

  // Returns max(best, the bits of |v|); a NaN is the greatest.
  static I max_magnitude(I best, F v) {
    return _mm256_max_epi32(best,
                            _mm256_and_si256(_mm256_castps_si256(v),
                                             _mm256_set1_epi32(0x7fffffff)));
  }

  // out[0:8] = v rounded to the nearest integers, ties to even.
  static void round_to_integers(F v, int8_t* out) {
    I words = _mm256_cvtps_epi32(v);
    __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words),
                                     _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out),
                     _mm_packs_epi16(halves, halves));
  }
  static void round_to_integers(F v, int16_t* out) {
    I words = _mm256_cvtps_epi32(v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm_packs_epi32(_mm256_castsi256_si128(words),
                                     _mm256_extracti128_si256(words, 1)));
  }

 private:
  // The bytes at p, one in each lane.
  static I bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(
        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }

  static F magnitudes() { return _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6); }

  // v, negated where the highest bit of `sign` is set.
  static F with_sign(I sign, F v) {
    return _mm256_xor_ps(v,
                         _mm256_and_ps(_mm256_castsi256_ps(sign), set1(-0.0f)));
  }

  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<Avx2>(codes);
  }

  static I first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }

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
      if constexpr (kBits == 1) {
        words = _mm256_set1_epi32(p[0]);
      } else if constexpr (kBits == 2) {
        words = _mm256_set1_epi32(read<uint16_t>(p));
      } else if constexpr (kBits == 3) {
        words = _mm256_set1_epi32(read<uint16_t>(p) | p[2] << 16);
      } else if constexpr (kBits == 4) {
        words = _mm256_set1_epi32(read<uint32_t>(p));
      } else {
        // Lanes whose code extends beyond the first 4 bytes read the last 4:
        // all but the first 32 / kBits lanes.
        static_assert(kBits > 4);
        constexpr int kSkipped = 8 * (kBits - 4);
        constexpr int kLate = 0xff << 32 / kBits & 0xff;
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
