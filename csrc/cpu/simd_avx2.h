// The SIMD facade over AVX2, FMA and F16C: products of integers here, floats
// and codes in the files of those names. No other file has their intrinsics.
// Include it only from files that are compiled for them.
#pragma once

#include "csrc/cpu/simd_avx2_codes.h"

namespace nibble::cpu {
namespace {

struct Avx2 : Avx2Codes {
  // 4 weight rows x 3 activation rows: 12 of 16 registers.
  static constexpr int kTileRows = 3;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int) { return 4; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 8;

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
  static I first_lanes(int count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(count),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
};

}  // namespace
}  // namespace nibble::cpu
