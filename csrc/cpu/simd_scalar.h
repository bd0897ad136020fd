// The SIMD facade in plain C++, for machines without a supported instruction
// set: products of integers here, floats and codes in the files of those names.
// 8 lanes are an array, which compilers may vectorize.
#pragma once

#include "csrc/cpu/simd_scalar_codes.h"

namespace nibble::cpu {
namespace {

struct Scalar : ScalarCodes {
  static constexpr int kTileRows = 2;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int M) { return M <= 1 ? 4 : 2; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;

  static constexpr int kStrips = 1;
  static constexpr int kIntTileRows = 2;
  // packed-inl.h.
  static constexpr int kRowStreams = 1;
  static constexpr int kAhead = 8 * 1024;

  static I int_zero() { return I{}; }

  static I int_load(const int32_t* p) {
    I out;
    std::memcpy(&out, p, sizeof(out));
    return out;
  }

  static I int_add(I a, I b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] += b.lane[i];
    return a;
  }

  static I int_or(I a, I b) {
    for (int i = 0; i < kLanes; ++i) a.lane[i] |= b.lane[i];
    return a;
  }

  // Returns the first `count` words at p, then zeros.
  static I load_words(const uint8_t* p, int count) {
    I out{};
    std::memcpy(&out, p, 4 * count);
    return out;
  }

  // a and b as blocks of kBlock lanes, numbered from 0: the even blocks, one of
  // a, one of b, and so on; and the odd blocks.
  template <int kBlock>
  static I even_blocks(I a, I b) {
    for (int i = 0; i < kLanes; ++i) {
      if (i & kBlock) a.lane[i] = b.lane[i - kBlock];
    }
    return a;
  }
  template <int kBlock>
  static I odd_blocks(I a, I b) {
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & kBlock)) b.lane[i] = a.lane[i + kBlock];
    }
    return b;
  }

  // Returns the 4 bytes at p in every lane.
  static I broadcast4(const void* p) {
    int32_t word;
    std::memcpy(&word, p, sizeof(word));
    I out;
    for (int32_t& lane : out.lane) lane = word;
    return out;
  }

  // Code number kPart of each byte, which has 8 / kBits codes; times 2^kUp.
  template <int kBits, int kPart, int kUp = 0>
  static I byte_codes(I v) {
    for (int32_t& lane : v.lane) {
      uint32_t codes = static_cast<uint32_t>(lane) >> (kPart * kBits) &
                       0x01010101u * ((1 << kBits) - 1);
      lane = static_cast<int32_t>(codes << kUp);
    }
    return v;
  }

  // table[byte] for bytes below 16.
  static I look_up(const uint8_t (&table)[16], I bytes) {
    for (int32_t& lane : bytes.lane) {
      uint8_t four[4];
      std::memcpy(four, &lane, sizeof(four));
      for (uint8_t& byte : four) byte = table[byte];
      std::memcpy(&lane, four, sizeof(four));
    }
    return bytes;
  }

  // code() gives numbers over this.
  template <class Q>
  static constexpr float kCodeUnit = 1;

  // The number of code kCode in each lane's panel word.
  template <class Q, int kCode>
  static F code(I words) {
    constexpr int kBits = Q::kBits;
    for (int32_t& lane : words.lane) {
      uint32_t shifted =
          static_cast<uint32_t>(lane) >> (kCode * panel_bits(kBits));
      lane = static_cast<int32_t>(shifted & ((1 << kBits) - 1));
    }
    return numbers<Q>(words);
  }

  // Each lane: sum += the products of 4 codes, less than 2^kBits, and 4
  // activations.
  template <int kBits>
  static I dot4(I sum, I codes, I x) {
    for (int i = 0; i < kLanes; ++i) {
      uint8_t q[4];
      int8_t a[4];
      std::memcpy(q, &codes.lane[i], sizeof(q));
      std::memcpy(a, &x.lane[i], sizeof(a));
      for (int j = 0; j < 4; ++j) sum.lane[i] += q[j] * a[j];
    }
    return sum;
  }

  // out[d, r] = word d of rows[r], for d < count <= 8; rows of out are
  // `stride` apart.
  static void transpose(const uint8_t* const* rows,
                        int count,
                        int32_t* out,
                        int stride) {
    for (int d = 0; d < count; ++d) {
      for (int r = 0; r < kLanes; ++r) {
        std::memcpy(out + d * stride + r, rows[r] + 4 * d, 4);
      }
    }
  }

  // Returns max(best, the bits of |v|); a NaN is the greatest.
  static I max_magnitude(I best, F v) {
    I bits;
    std::memcpy(&bits, &v, sizeof(bits));
    for (int i = 0; i < kLanes; ++i) {
      int32_t magnitude = bits.lane[i] & 0x7fffffff;
      if (magnitude > best.lane[i]) best.lane[i] = magnitude;
    }
    return best;
  }

  static void int_store(int32_t* p, I v) { std::memcpy(p, &v, sizeof(v)); }

  // out[0:8] = v rounded to the nearest integers, ties to even. Undefined for
  // |v| >= 2^22 and for NaN.
  static void round_to_integers(F v, int8_t* out) {
    for (int i = 0; i < kLanes; ++i) {
      // At 1.5 * 2^23 the unit in the last place is 1.
      float shifted = v.lane[i] + 0x1.8p23f;
      int32_t bits;
      std::memcpy(&bits, &shifted, sizeof(bits));
      out[i] = static_cast<int8_t>(bits & 0xff);
    }
  }
};

}  // namespace
}  // namespace nibble::cpu
