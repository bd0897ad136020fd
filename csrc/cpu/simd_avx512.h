// The SIMD facade over AVX-512 (F, BW, DQ, VL): products of integers here,
// floats and codes in the files of those names. No other file has its
// intrinsics. Include it only from files that are compiled for it.
#pragma once

#include "csrc/cpu/simd_avx512_codes.h"

namespace nibble::cpu {
namespace {

struct Avx512 : Avx512Codes {
  // The accumulators of a tile are weight rows x activation rows. 4 x 6 leave 8
  // of the 32 registers for weights, tables and one activation.
  static constexpr int kTileRows = 6;
  // Weight rows in a tile that decodes: up to 8 hide the latency of an FMA.
  static constexpr int decode_rows(int M) { return M <= 2 ? 8 : 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights (measured on Zen 5).
  static constexpr int kFewRows = 4 * kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;

  // Strips of 16 weight rows x activation rows of a tile: 12 integer sums.
  static constexpr int kStrips = 2;
  static constexpr int kIntTileRows = 6;
  // packed-inl.h.
  static constexpr int kRowStreams = 1;
  static constexpr int kAhead = 8 * 1024;

  static I int_zero() { return _mm512_setzero_si512(); }
  static I int_load(const int32_t* p) { return _mm512_loadu_si512(p); }
  static void int_store(int32_t* p, I v) { _mm512_storeu_si512(p, v); }
  static I int_add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I int_or(I a, I b) { return _mm512_or_si512(a, b); }

  // Returns the first `count` words at p, then zeros.
  static I load_words(const uint8_t* p, int count) {
    return _mm512_maskz_loadu_epi32(
        static_cast<__mmask16>((uint32_t{1} << count) - 1), p);
  }

  // a and b as blocks of kBlock lanes, numbered from 0: the even blocks, one of
  // a, one of b, and so on; and the odd blocks.
  template <int kBlock>
  static I even_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm512_mask_shuffle_epi32(a, 0xaaaa, b, _MM_PERM_CCAA);
    } else if constexpr (kBlock == 2) {
      return _mm512_unpacklo_epi64(a, b);
    } else if constexpr (kBlock == 4) {
      return _mm512_mask_shuffle_i32x4(a, 0xf0f0, b, b, 0xa0);
    } else {
      return _mm512_shuffle_i32x4(a, b, 0x44);
    }
  }
  template <int kBlock>
  static I odd_blocks(I a, I b) {
    if constexpr (kBlock == 1) {
      return _mm512_mask_shuffle_epi32(b, 0x5555, a, _MM_PERM_DDBB);
    } else if constexpr (kBlock == 2) {
      return _mm512_unpackhi_epi64(a, b);
    } else if constexpr (kBlock == 4) {
      return _mm512_mask_shuffle_i32x4(b, 0x0f0f, a, a, 0xf5);
    } else {
      return _mm512_shuffle_i32x4(a, b, 0xee);
    }
  }

  // Returns the 4 bytes at p in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    return _mm512_set1_epi32(word);
  }

  // Code number kPart of each byte, which has 8 / kBits codes; times 2^kUp.
  template <int kBits, int kPart, int kUp = 0>
  static I byte_codes(I v) {
    constexpr int kDown = kPart * kBits - kUp;
    if constexpr (kBits == 8) {
      return v;
    } else if constexpr (kDown > 0) {
      v = _mm512_srli_epi32(v, kDown);
    } else if constexpr (kDown < 0) {
      v = _mm512_slli_epi32(v, -kDown);
    }
    return _mm512_and_si512(v, _mm512_set1_epi8(((1 << kBits) - 1) << kUp));
  }

  // The same for halves of a word, which have 16 / kBits codes.
  template <int kBits, int kPart>
  static I half_codes(I v) {
    return _mm512_and_si512(_mm512_srli_epi32(v, kPart * kBits),
                            _mm512_set1_epi16((1 << kBits) - 1));
  }

  // Bytes 0 and 2 (kOdd: 1 and 3) of each word as halves.
  template <int kOdd>
  static I byte_halves(I v) {
    return kOdd ? _mm512_srli_epi16(v, 8)
                : _mm512_and_si512(v, _mm512_set1_epi16(0xff));
  }

  // table[byte] for bytes below 16.
  static I look_up(const uint8_t (&table)[16], I bytes) {
    __m128i quarter = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(quarter), bytes);
  }

  // code() gives numbers over this.
  template <class Q>
  static constexpr float kCodeUnit = 1;

  // The number of code kCode in each lane's panel word.
  template <class Q, int kCode>
  static F code(I words) {
    constexpr int kBits = Q::kBits;
    if constexpr (kCode > 0) {
      words = _mm512_srli_epi32(words, kCode * panel_bits(kBits));
    }
    I mask = _mm512_set1_epi32((1 << kBits) - 1);
    if constexpr (kBits < 5) {
      // vpermps reads only the low 4 bits of an index: 2 bits repeat.
      return _mm512_permutexvar_ps(
          words, numbers<Q>(_mm512_and_si512(iota(0, 1), mask)));
    } else if constexpr (kBits == 5) {
      return _mm512_permutex2var_ps(
          numbers<Q>(iota(0, 1)), words, numbers<Q>(iota(16, 1)));
    }
    return numbers<Q>(_mm512_and_si512(words, mask));
  }

  // Returns v. GCC would add integers in another order, for which it has too
  // few registers.
  static I in_order(I v) {
    asm("" : "+v"(v));
    return v;
  }

  // Each lane: sum += the products of 4 codes, less than 2^kBits, and 4
  // activations.
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    I ones = _mm512_set1_epi16(1);
    if constexpr (kBits == 8) {
      // Sums of two products must fit into 16 bits, so the highest bit is
      // multiplied separately.
      I high =
          _mm512_and_si512(_mm512_srli_epi32(codes, 7), _mm512_set1_epi8(1));
      sum = _mm512_add_epi32(sum,
                             _mm512_madd_epi16(_mm512_maddubs_epi16(high, x),
                                               _mm512_set1_epi16(128)));
      codes = _mm512_and_si512(codes, _mm512_set1_epi8(127));
    }
    return in_order(_mm512_add_epi32(
        sum, _mm512_madd_epi16(_mm512_maddubs_epi16(codes, x), ones)));
  }

  // Each lane: sum += the products of 2 halves and 2 activations.
  static I dot2(I sum, I codes, I x) {
    return in_order(_mm512_add_epi32(sum, _mm512_madd_epi16(codes, x)));
  }

  // out[d, r] = word d of rows[r], for d < count <= 16; rows of out are
  // `stride` apart.
  static void transpose(const uint8_t* const* rows,
                        int count,
                        int32_t* out,
                        int stride) {
    __mmask16 words = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    I t[16], u[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      I a = _mm512_maskz_loadu_epi32(words, rows[i]);
      I b = _mm512_maskz_loadu_epi32(words, rows[i + 1]);
      t[i] = _mm512_unpacklo_epi32(a, b);
      t[i + 1] = _mm512_unpackhi_epi32(a, b);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // Quarter q of u[i + c] has word 4 q + c of rows i to i + 3.
    I v[16];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      I a = _mm512_shuffle_i32x4(u[c], u[4 + c], 0x44);
      I b = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0x44);
      I d = _mm512_shuffle_i32x4(u[c], u[4 + c], 0xee);
      I e = _mm512_shuffle_i32x4(u[8 + c], u[12 + c], 0xee);
      v[c] = _mm512_shuffle_i32x4(a, b, 0x88);
      v[c + 4] = _mm512_shuffle_i32x4(a, b, 0xdd);
      v[c + 8] = _mm512_shuffle_i32x4(d, e, 0x88);
      v[c + 12] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    if (count == 16) {
#pragma GCC unroll 16
      for (int d = 0; d < 16; ++d) int_store(out + d * stride, v[d]);
      return;
    }
#pragma GCC unroll 16
    for (int d = 0; d < 16; ++d) {
      if (d < count) int_store(out + d * stride, v[d]);
    }
  }

  // Returns max(best, the bits of |v|); a NaN is the greatest.
  static I max_magnitude(I best, F v) {
    return _mm512_max_epi32(best,
                            _mm512_and_si512(_mm512_castps_si512(v),
                                             _mm512_set1_epi32(0x7fffffff)));
  }

  // out[0:16] = v rounded to the nearest integers, ties to even.
  static void round_to_integers(F v, int8_t* out) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out),
                     _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
  }
  static void round_to_integers(F v, int16_t* out) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out),
                        _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(v)));
  }
};

}  // namespace
}  // namespace nibble::cpu
