// The floats of simd_scalar.h: arithmetic, and conversions from and to other
// types.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "csrc/core/dtype.h"
#include "csrc/cpu/half.h"

namespace nibble::cpu {
namespace {

struct ScalarFloats {
  static constexpr int kLanes = 8;

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

  static F to_float(I v) {
    F out;
    for (int i = 0; i < kLanes; ++i) {
      out.lane[i] = static_cast<float>(v.lane[i]);
    }
    return out;
  }

 protected:
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
struct ScalarFloats::Type<Dtype::kFloat32> {
  using type = float;
};
template <>
struct ScalarFloats::Type<Dtype::kFloat16> {
  using type = Float16;
};
template <>
struct ScalarFloats::Type<Dtype::kBFloat16> {
  using type = BFloat16;
};

}  // namespace
}  // namespace nibble::cpu
