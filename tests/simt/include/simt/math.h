// <metal_math>, <metal_common>, <metal_integer>, <metal_relational>. No
// function takes a bfloat: as in Metal, it becomes a float first, and the
// result is a float.
#pragma once

#include "simt/limits.h"

namespace metal {

// Overloads, not templates: min(int, uint) is ambiguous, as it is in Metal.
#define SIMT_ORDER(T)                              \
  SIMT_DEVICE inline T min(T a, T b) {             \
    return b < a ? b : a;                          \
  }                                                \
  SIMT_DEVICE inline T max(T a, T b) {             \
    return a < b ? b : a;                          \
  }                                                \
  SIMT_DEVICE inline T clamp(T v, T low, T high) { \
    return min(max(v, low), high);                 \
  }
SIMT_ORDER(signed char)
SIMT_ORDER(unsigned char)
SIMT_ORDER(short)
SIMT_ORDER(unsigned short)
SIMT_ORDER(int)
SIMT_ORDER(unsigned int)
SIMT_ORDER(long)
SIMT_ORDER(unsigned long)
SIMT_ORDER(float)
SIMT_ORDER(half)
#undef SIMT_ORDER

template <class T>
SIMT_DEVICE inline T select(T if_false, T if_true, bool condition) {
  return condition ? if_true : if_false;
}

// clang-format off
#define SIMT_MATH_1(name)                                                   \
  SIMT_DEVICE inline float name(float x) { return SIMT_BUILTIN(name)(x); }  \
  SIMT_DEVICE inline half name(half x) {                                    \
    return half(SIMT_BUILTIN(name)(float(x)));                              \
  }
#define SIMT_MATH_2(name)                                                   \
  SIMT_DEVICE inline float name(float x, float y) {                         \
    return SIMT_BUILTIN(name)(x, y);                                        \
  }                                                                         \
  SIMT_DEVICE inline half name(half x, half y) {                            \
    return half(SIMT_BUILTIN(name)(float(x), float(y)));                    \
  }
#define SIMT_MATH                                                           \
  SIMT_MATH_1(exp) SIMT_MATH_1(exp2) SIMT_MATH_1(log) SIMT_MATH_1(log2)     \
  SIMT_MATH_1(log10) SIMT_MATH_1(sqrt) SIMT_MATH_1(sin) SIMT_MATH_1(cos)    \
  SIMT_MATH_1(tan) SIMT_MATH_1(asin) SIMT_MATH_1(acos) SIMT_MATH_1(atan)    \
  SIMT_MATH_1(sinh) SIMT_MATH_1(cosh) SIMT_MATH_1(tanh) SIMT_MATH_1(floor)  \
  SIMT_MATH_1(ceil) SIMT_MATH_1(trunc) SIMT_MATH_1(rint) SIMT_MATH_1(round) \
  SIMT_MATH_1(fabs) SIMT_MATH_2(pow) SIMT_MATH_2(atan2) SIMT_MATH_2(fmod)   \
  SIMT_MATH_2(fmin) SIMT_MATH_2(fmax)                                       \
  SIMT_DEVICE inline float rsqrt(float x) { return 1.0f / sqrt(x); }
// clang-format on

SIMT_MATH
namespace precise {
SIMT_MATH
}
namespace fast {
SIMT_MATH
}
#undef SIMT_MATH
#undef SIMT_MATH_1
#undef SIMT_MATH_2

SIMT_DEVICE inline float abs(float x) {
  return fabs(x);
}
SIMT_DEVICE inline half abs(half x) {
  return fabs(x);
}
SIMT_DEVICE inline short abs(short x) {
  return x < 0 ? short(-x) : x;
}
SIMT_DEVICE inline int abs(int x) {
  return x < 0 ? -x : x;
}
SIMT_DEVICE inline long abs(long x) {
  return x < 0 ? -x : x;
}

SIMT_DEVICE inline float fma(float a, float b, float c) {
  return SIMT_BUILTIN(fma)(a, b, c);
}
SIMT_DEVICE inline bool isnan(float x) {
  return x != x;
}
SIMT_DEVICE inline bool isinf(float x) {
  return fabs(x) == numeric_limits<float>::infinity();
}
SIMT_DEVICE inline bool isfinite(float x) {
  return fabs(x) < numeric_limits<float>::infinity();
}
SIMT_DEVICE inline bool signbit(float x) {
  return __builtin_bit_cast(uint, x) >> 31 != 0;
}

}  // namespace metal
