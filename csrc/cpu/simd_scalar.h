// The SIMD facade in plain C++: 8 lanes are an array, for machines that have
// none of the instruction sets we know. Compilers make what they can of it.
#pragma once

#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/half.h"

namespace nibble::cpu {
namespace {

struct Scalar {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 2;
  // Weight rows of a tile that decodes.
  static constexpr int decode_rows(int M) { return M <= 1 ? 4 : 2; }
  // Up to here, decoding again for each tile is faster than storing what was
  // decoded.
  static constexpr int kFewRows = kTileRows;

  struct F {
    float lane[kLanes];
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

  // out[0:4] = the sum of the lanes of each.
  static void sum4(F a, F b, F c, F d, float* out) {
    const F* all[] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; ++i) {
      const float* v = all[i]->lane;
      out[i] =
          ((v[0] + v[4]) + (v[1] + v[5])) + ((v[2] + v[6]) + (v[3] + v[7]));
    }
  }

  template <Dtype kDtype>
  static F load_as_float(const uint8_t* p, int count = kLanes) {
    F out = zero();
    for (int i = 0; i < count; ++i) {
      TypeOf<kDtype> v;
      std::memcpy(&v, p + i * sizeof(v), sizeof(v));
      out.lane[i] = to_float(v);
    }
    return out;
  }

  template <Dtype kDtype>
  static void store_rounded(uint8_t* p, F v, int count = kLanes) {
    for (int i = 0; i < count; ++i) {
      TypeOf<kDtype> rounded;
      from_float(v.lane[i], rounded);
      std::memcpy(p + i * sizeof(rounded), &rounded, sizeof(rounded));
    }
  }

  template <int kBits>
  struct Group {
    float scale, bias;
  };

  template <int kBits>
  static Group<kBits> group(float scale, float bias) {
    return {scale, bias};
  }

  // The values of the next 8 codes, kBits bytes at p.
  template <int kBits>
  static F decode(const uint8_t* p, const Group<kBits>& g) {
    uint64_t codes = 0;
    std::memcpy(&codes, p, kBits);
    F out;
    for (int i = 0; i < kLanes; ++i) {
      uint64_t code = codes >> (i * kBits) & ((1 << kBits) - 1);
      out.lane[i] = static_cast<float>(code) * g.scale + g.bias;
    }
    return out;
  }

  template <int kBits>
  static constexpr bool kNatural = true;

  template <int kBits>
  static F to_code_order(F v) {
    return v;
  }

  template <int kBits>
  static F to_natural_order(F v) {
    return v;
  }

 private:
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
