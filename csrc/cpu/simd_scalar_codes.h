// The codes of simd_scalar.h: from packed codes to values.
#pragma once

#include "csrc/cpu/codes-inl.h"
#include "csrc/cpu/simd_scalar_floats.h"

namespace nibble::cpu {
namespace {

struct ScalarCodes : ScalarFloats {
  // True if regular codes (codes-inl.h) are decoded faster.
  static constexpr bool kDecodesRegular = false;

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

 protected:
  template <class Q>
  static F numbers(I codes) {
    return Q::template numbers<ScalarCodes>(codes);
  }
};

}  // namespace
}  // namespace nibble::cpu
