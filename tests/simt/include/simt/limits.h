// <metal_limits>.
#pragma once

#include "simt/type_traits.h"

namespace metal {

template <class T>
struct numeric_limits;

#define SIMT_INTEGER_LIMITS(T, least, most)                   \
  template <>                                                 \
  struct numeric_limits<T> {                                  \
    SIMT_DEVICE static constexpr T min() { return least; }    \
    SIMT_DEVICE static constexpr T lowest() { return least; } \
    SIMT_DEVICE static constexpr T max() { return most; }     \
  };
SIMT_INTEGER_LIMITS(bool, false, true)
SIMT_INTEGER_LIMITS(char, -128, 127)
SIMT_INTEGER_LIMITS(signed char, -128, 127)
SIMT_INTEGER_LIMITS(unsigned char, 0, 255)
SIMT_INTEGER_LIMITS(short, -32768, 32767)
SIMT_INTEGER_LIMITS(unsigned short, 0, 65535)
SIMT_INTEGER_LIMITS(int, -2147483647 - 1, 2147483647)
SIMT_INTEGER_LIMITS(unsigned int, 0, 4294967295u)
SIMT_INTEGER_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
SIMT_INTEGER_LIMITS(unsigned long, 0, 18446744073709551615UL)
#undef SIMT_INTEGER_LIMITS

#define SIMT_FLOAT_LIMITS(T, bits, least, most, inf, nan, eps)    \
  template <>                                                     \
  struct numeric_limits<T> {                                      \
    SIMT_DEVICE static constexpr T min() {                        \
      return __builtin_bit_cast(T, bits(least));                  \
    }                                                             \
    SIMT_DEVICE static constexpr T max() {                        \
      return __builtin_bit_cast(T, bits(most));                   \
    }                                                             \
    SIMT_DEVICE static constexpr T lowest() { return T(-max()); } \
    SIMT_DEVICE static constexpr T infinity() {                   \
      return __builtin_bit_cast(T, bits(inf));                    \
    }                                                             \
    SIMT_DEVICE static constexpr T quiet_NaN() {                  \
      return __builtin_bit_cast(T, bits(nan));                    \
    }                                                             \
    SIMT_DEVICE static constexpr T epsilon() {                    \
      return __builtin_bit_cast(T, bits(eps));                    \
    }                                                             \
  };
SIMT_FLOAT_LIMITS(
    float, uint, 0x00800000, 0x7f7fffff, 0x7f800000, 0x7fc00000, 0x34000000)
SIMT_FLOAT_LIMITS(half, ushort, 0x0400, 0x7bff, 0x7c00, 0x7e00, 0x1400)
SIMT_FLOAT_LIMITS(bfloat, ushort, 0x0080, 0x7f7f, 0x7f80, 0x7fc0, 0x3c00)
#undef SIMT_FLOAT_LIMITS

}  // namespace metal
