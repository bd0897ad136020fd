// The SIMD facade in plain C++, for machines without a supported instruction
// set. 8 lanes are an array, which compilers may vectorize.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/half.h"

namespace nibble::cpu {
namespace {

struct Scalar {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 2;
  // Weight rows in a tile that decodes.
  static constexpr int decode_rows(int M) { return M <= 1 ? 4 : 2; }
  // Up to this number of rows, decoding again for each tile is faster than
  // storing decoded weights.
  static constexpr int kFewRows = kTileRows;
  // Up to this number of rows, exact products read the packed layout.
  static constexpr int kPackedRows = 3;
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = false;

  struct F {
    float lane[kLanes];
  };

  struct I {
    int32_t lane[kLanes];
  };

  static F zero() { return set1(0); }

  static F set1(float v) {
    F out;
    for (float& lane : out.lane) lane = v;
    return out;
  }

  static F load(const float* p) {
    F out;
    std::memcpy(&out, p, sizeof(out));
    return out;
  }

  static void store(float* p, F v) { std::memcpy(p, &v, sizeof(v)); }

  static F fma(F a, F b, F c) {
    F out;
    for (int i = 0; i < kLanes; ++i) {
      out.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    }
    return out;
  }

  // out[0:4] = the sums of the lanes of a, b, c and d.
  static void sum4(F a, F b, F c, F d, float* out) {
    const F* all[] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; ++i) {
      const float* v = all[i]->lane;
      out[i] =
          ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
    }
  }

  // The sums of v[0:8] lane by lane, in the order in which sum4 adds lanes.
  static F sum_across(const F (&v)[kLanes]) {
    return add(add(add(v[0], v[4]), add(v[1], v[5])),
               add(add(v[2], v[6]), add(v[3], v[7])));
  }

  static F add(F a, F b) {
    return by_lane([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static F mul(F a, F b) {
    return by_lane([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static F div(F a, F b) {
    return by_lane([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  // NaN where b is NaN.
  static F max(F a, F b) {
    return by_lane(
        [&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static F min(F a, F b) {
    return by_lane(
        [&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  // For |v| up to 2^22: adding 1.5 * 2^23 leaves no bits for a fraction.
  static F round(F v) {
    return by_lane([&](int i) { return (v.lane[i] + 0x1.8p23f) - 0x1.8p23f; });
  }
  // Returns 2^n for an integral n from -126 to 127; 0 if n is -127.
  static F exp2_integral(F n) {
    return by_lane([&](int i) {
      return std::bit_cast<float>(static_cast<int32_t>(n.lane[i] + 127) << 23);
    });
  }
  static float sum(F v) {
    float four[4];
    sum4(v, v, v, v, four);
    return four[0];
  }
  static float largest(F v) {
    float out = v.lane[0];
    for (float lane : v.lane) out = lane > out ? lane : out;
    return out;
  }

  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    F out = zero();
    if constexpr (is_byte(kDtype)) {
      I bytes{};
      for (int i = 0; i < count; ++i) bytes.lane[i] = p[i];
      if constexpr (kDtype == Dtype::kE4m3) return e4m3(bytes);
      // The byte is the exponent. 2^-127 is subnormal: its bits are 2^22.
      return by_lane([&](int i) {
        int32_t byte = bytes.lane[i];
        return std::bit_cast<float>(byte > 0 ? byte << 23 : 1 << 22);
      });
    } else {
      for (int i = 0; i < count; ++i) {
        TypeOf<kDtype> v;
        std::memcpy(&v, p + i * sizeof(v), sizeof(v));
        out.lane[i] = cpu::to_float(v);
      }
      return out;
    }
  }

  template <Dtype kDtype>
  static void store_rounded(uint8_t* p, F v, int count = kLanes) {
    for (int i = 0; i < count; ++i) {
      TypeOf<kDtype> rounded;
      from_float(v.lane[i], rounded);
      std::memcpy(p + i * sizeof(rounded), &rounded, sizeof(rounded));
    }
  }

  // The floats that codes in the low bits of each lane are.
  static F e2m1(I codes) {
    constexpr float kMagnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
    return by_lane([&](int i) {
      float magnitude = kMagnitudes[codes.lane[i] & 7];
      return codes.lane[i] & 8 ? -magnitude : magnitude;
    });
  }
  static F e4m3(I codes) {
    return by_lane([&](int i) {
      int32_t bits = codes.lane[i] & 0x7f;
      // Normal numbers get the exponent of a float. Others are integers x 2^-9.
      float magnitude = bits == 0x7f ? __builtin_nanf("")
                        : bits < 8
                            ? static_cast<float>(bits) * 0x1p-9f
                            : std::bit_cast<float>((bits << 20) + (120 << 23));
      return codes.lane[i] & 0x80 ? -magnitude : magnitude;
    });
  }

  template <class Q>
  struct Group {
    float scale, bias;
  };

  template <class Q>
  static Group<Q> group(float scale, float bias) {
    return {scale, bias};
  }

  // Returns the values of the next 8 codes, kBits bytes at p.
  template <class Q>
  static F decode(const uint8_t* p, const Group<Q>& g) {
    constexpr int kBits = Q::kBits;
    uint64_t codes = 0;
    std::memcpy(&codes, p, kBits);
    I each;
    for (int i = 0; i < kLanes; ++i) {
      each.lane[i] =
          static_cast<int32_t>(codes >> (i * kBits) & ((1 << kBits) - 1));
    }
    F v = numbers<Q>(each);
    if constexpr (!Q::kBiased) {
      return by_lane([&](int i) { return v.lane[i] * g.scale; });
    }
    return by_lane([&](int i) { return v.lane[i] * g.scale + g.bias; });
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

  static F to_float(I v) {
    F out;
    for (int i = 0; i < kLanes; ++i) {
      out.lane[i] = static_cast<float>(v.lane[i]);
    }
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

 private:
  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<Scalar>(codes);
  }

  template <typename Fn>
  static F by_lane(Fn&& fn) {
    F out;
    for (int i = 0; i < kLanes; ++i) out.lane[i] = fn(i);
    return out;
  }

  template <Dtype kDtype>
  struct Type;
  template <Dtype kDtype>
  using TypeOf = typename Type<kDtype>::type;
};

template <>
struct Scalar::Type<Dtype::kFloat32> {
  using type = float;
};
template <>
struct Scalar::Type<Dtype::kFloat16> {
  using type = Float16;
};
template <>
struct Scalar::Type<Dtype::kBFloat16> {
  using type = BFloat16;
};

}  // namespace
}  // namespace nibble::cpu
