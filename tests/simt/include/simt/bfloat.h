// bfloat: the upper half of a float. A class, because Metal converts float to
// bfloat only explicitly, and compilers' own __bf16 converts implicitly.
#pragma once

#include "simt/backend.h"

struct bfloat {
  ushort bits;

  bfloat() = default;
  SIMT_DEVICE constexpr explicit bfloat(float value)
      : bits(round(__builtin_bit_cast(uint, value))) {}
  SIMT_DEVICE constexpr explicit bfloat(int value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(uint value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(short value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(ushort value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(uchar value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(bool value) : bfloat(float(value)) {}
  SIMT_DEVICE constexpr explicit bfloat(half value) : bfloat(float(value)) {}

#if defined(__OPENCL_CPP_VERSION__)
  // The implicit copy binds to every address space except this one.
  template <class B, class = decltype(B().bits)>
  constexpr bfloat(const __constant B& other) : bits(other.bits) {}
#endif

#if defined(SIMT_BFLOAT_ASSIGNS_FLOAT)
  // clang makes c ? a : bfloat(0) a float if `a` is in an address space. MLX
  // assigns such a value, so this allows it.
  bfloat(const __generic bfloat&) = default;
  __generic bfloat& operator=(const __generic bfloat&) = default;
  __generic bfloat& operator=(float value) { return *this = bfloat(value); }
#endif

  SIMT_DEVICE constexpr operator float() const {
    return __builtin_bit_cast(float, uint(bits) << 16);
  }

 private:
  // Rounds to nearest, ties to even; a NaN stays a NaN.
  SIMT_DEVICE static constexpr ushort round(uint value) {
    bool nan = (value & 0x7fffffffu) > 0x7f800000u;
    uint even = (value >> 16) & 1u;
    return nan ? ushort(value >> 16 | 0x40u)
               : ushort((value + 0x7fffu + even) >> 16);
  }
};

// An operation on two bfloats, or on a bfloat and an integer, gives a bfloat.
// With a float, the conversion above makes it a float. Only integers have a
// remainder.
#define SIMT_BFLOAT_OP(op)                                              \
  SIMT_DEVICE constexpr inline bfloat operator op(bfloat a, bfloat b) { \
    return bfloat(float(a) op float(b));                                \
  }                                                                     \
  template <class I, class = decltype(I(1) % 2)>                        \
  SIMT_DEVICE constexpr inline bfloat operator op(bfloat a, I b) {      \
    return a op bfloat(float(b));                                       \
  }                                                                     \
  template <class I, class = decltype(I(1) % 2)>                        \
  SIMT_DEVICE constexpr inline bfloat operator op(I a, bfloat b) {      \
    return bfloat(float(a)) op b;                                       \
  }                                                                     \
  SIMT_DEVICE inline SIMT_ANY_SPACE bfloat& operator op## =             \
      (SIMT_ANY_SPACE bfloat & a, bfloat b) {                           \
    return a = a op b;                                                  \
  }
SIMT_BFLOAT_OP(+)
SIMT_BFLOAT_OP(-)
SIMT_BFLOAT_OP(*)
SIMT_BFLOAT_OP(/)
#undef SIMT_BFLOAT_OP

SIMT_DEVICE constexpr inline bfloat operator-(bfloat a) {
  return bfloat(-float(a));
}
