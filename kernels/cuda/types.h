// The types of activations: pairs of them in a register, and their tensor core.
// NVRTC compiles this text without a header of CUDA's.
#pragma once

#define NIBBLE_DEVICE __device__ __forceinline__
// For the functions of kernels/shared.h.
#define NIBBLE_INLINE __device__ __forceinline__

namespace nibble {

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
// The names that texts shared with Metal use.
typedef unsigned int uint;
typedef unsigned long ulong;

// (a & mask) | around, in one instruction. The compiler would make two.
template <uint32 mask, uint32 around>
NIBBLE_DEVICE uint32 masked(uint32 a) {
  uint32 d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;"
      : "=r"(d)
      : "r"(a), "n"(mask), "n"(around));
  return d;
}

// d += a @ b for a [16, 16] and b [16, 8], with sums in float.
#define NIBBLE_MMA(type)                                                     \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

// How codes become numbers without arithmetic: a type says where the bits of a
// code go and which bits are around them. The number is then
// (code + kOffset) / kScale.
struct BFloat16 {
  static constexpr uint32 kOnes = 0x3f803f80;
  // The code is the upper part of the mantissa, the exponent its width b:
  // 2^b + code. 8 bits do not fit; they are summed from two halves.
  template <int kBits>
  struct Place {
    static constexpr bool kFits = kBits <= 7;
    static constexpr int kShift = kFits ? 7 - kBits : 0;
    static constexpr uint32 kAround = kFits ? (127 + kBits) * 0x00800080u : 0;
    static constexpr float kOffset = kFits ? 1 << kBits : 0;
    static constexpr float kScale = 1;
  };

  // The same for codes that are about to be added and multiplied in this type.
  template <int kBits>
  using Exact = Place<kBits>;
  static constexpr int kMantissa = 7;  // bits
  static constexpr int kBias = 127;    // of the exponent
  // True if the exponents are those of float, so that products of small numbers
  // are subnormal, and every E8M0 is a number.
  static constexpr bool kWide = true;

  static NIBBLE_DEVICE uint32 fma(uint32 a, uint32 b, uint32 c) {
    uint32 d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static NIBBLE_DEVICE float to_float(uint16 v) {
    return __uint_as_float(uint32(v) << 16);
  }
  static NIBBLE_DEVICE uint16 from_float(float v) {
    uint16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
  }
  static NIBBLE_DEVICE void mma(float (&d)[4],
                                const uint32 (&a)[4],
                                uint32 b0,
                                uint32 b1) {
    NIBBLE_MMA("bf16");
  }
};

struct Float16 {
  static constexpr uint32 kOnes = 0x3c003c00;
  // The code is a subnormal number: tensor cores multiply these exactly.
  template <int kBits>
  struct Place {
    static constexpr bool kFits = true;
    static constexpr int kShift = 0;
    static constexpr uint32 kAround = 0;
    static constexpr float kOffset = 0;
    static constexpr float kScale = 16777216;  // 2^24
  };
  // 1024 + code: 2^24 itself is no number of this type.
  template <int kBits>
  struct Exact {
    static constexpr bool kFits = true;
    static constexpr int kShift = 0;
    static constexpr uint32 kAround = 0x64006400;
  };
  static constexpr int kMantissa = 10;
  static constexpr int kBias = 15;
  static constexpr bool kWide = false;

  static NIBBLE_DEVICE uint32 fma(uint32 a, uint32 b, uint32 c) {
    uint32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }
  static NIBBLE_DEVICE float to_float(uint16 v) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
    return f;
  }
  static NIBBLE_DEVICE uint16 from_float(float v) {
    uint16 r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(v));
    return r;
  }
  static NIBBLE_DEVICE void mma(float (&d)[4],
                                const uint32 (&a)[4],
                                uint32 b0,
                                uint32 b1) {
    NIBBLE_MMA("f16");
  }
};

#undef NIBBLE_MMA

// The number 2^exponent twice.
template <typename T>
NIBBLE_DEVICE constexpr uint32 power(int exponent) {
  return (uint32(T::kBias + exponent) << T::kMantissa) * 0x00010001u;
}

// a * b for pairs.
template <typename T>
NIBBLE_DEVICE uint32 times(uint32 a, uint32 b) {
  return T::fma(a, b, 0x80008000);
}

}  // namespace nibble
