// vec<T, N>: Metal's short vectors, without swizzles.
#pragma once

#include "simt/type_traits.h"

namespace metal {

template <class T, int N>
struct vec;

// Copies are explicit, although the compiler could make them: only then does a
// reference bind to the vector in memory, and -fsanitize=alignment checks it.
// `element_i` is the member of index i.
#define SIMT_VEC_ASSIGN(op, N)                                          \
  template <class S>                                                    \
  SIMT_DEVICE SIMT_ANY_SPACE vec& operator op## = (S b) {               \
    vec other(b);                                                       \
    for (int i = 0; i < N; ++i) (*this)[i] = T((*this)[i] op other[i]); \
    return *this;                                                       \
  }
#define SIMT_VEC_MEMBERS(N, element_i)                                        \
  vec() = default;                                                            \
  SIMT_DEVICE vec(const SIMT_ANY_SPACE vec& from) {                           \
    for (int i = 0; i < N; ++i) (*this)[i] = from[i];                         \
  }                                                                           \
  SIMT_DEVICE SIMT_ANY_SPACE vec& operator=(const SIMT_ANY_SPACE vec& from) { \
    for (int i = 0; i < N; ++i) (*this)[i] = from[i];                         \
    return *this;                                                             \
  }                                                                           \
  SIMT_DEVICE explicit vec(T all) {                                           \
    for (int i = 0; i < N; ++i) (*this)[i] = all;                             \
  }                                                                           \
  template <class U>                                                          \
  SIMT_DEVICE explicit vec(vec<U, N> from) {                                  \
    for (int i = 0; i < N; ++i) (*this)[i] = T(from[i]);                      \
  }                                                                           \
  SIMT_VEC_ASSIGN(+, N)                                                       \
  SIMT_VEC_ASSIGN(-, N)                                                       \
  SIMT_VEC_ASSIGN(*, N)                                                       \
  SIMT_VEC_ASSIGN(/, N) SIMT_DEVICE SIMT_ANY_SPACE T& operator[](int i) {     \
    return element_i;                                                         \
  }                                                                           \
  SIMT_DEVICE const SIMT_ANY_SPACE T& operator[](int i) const {               \
    return element_i;                                                         \
  }

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  SIMT_DEVICE constexpr vec(T a, T b) : x(a), y(b) {}
  SIMT_VEC_MEMBERS(2, i == 0 ? x : y)
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  SIMT_DEVICE constexpr vec(T a, T b, T c) : x(a), y(b), z(c) {}
  SIMT_VEC_MEMBERS(3, i == 0 ? x : i == 1 ? y : z)
};
template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  SIMT_DEVICE constexpr vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  SIMT_VEC_MEMBERS(4, i == 0 ? x : i == 1 ? y : i == 2 ? z : w)
};
#undef SIMT_VEC_MEMBERS
#undef SIMT_VEC_ASSIGN

#define SIMT_VEC_OP(op)                                                \
  template <class T, int N>                                            \
  SIMT_DEVICE inline vec<T, N> operator op(vec<T, N> a, vec<T, N> b) { \
    vec<T, N> r;                                                       \
    for (int i = 0; i < N; ++i) r[i] = T(a[i] op b[i]);                \
    return r;                                                          \
  }                                                                    \
  template <class T, int N, class S>                                   \
  SIMT_DEVICE inline vec<T, N> operator op(vec<T, N> a, S b) {         \
    return a op vec<T, N>(T(b));                                       \
  }                                                                    \
  template <class T, int N, class S>                                   \
  SIMT_DEVICE inline vec<T, N> operator op(S a, vec<T, N> b) {         \
    return vec<T, N>(T(a)) op b;                                       \
  }
SIMT_VEC_OP(+)
SIMT_VEC_OP(-)
SIMT_VEC_OP(*)
SIMT_VEC_OP(/)
SIMT_VEC_OP(&)
SIMT_VEC_OP(|)
SIMT_VEC_OP(^)
SIMT_VEC_OP(<<)
SIMT_VEC_OP(>>)
#undef SIMT_VEC_OP

template <class T, int N>
SIMT_DEVICE inline T dot(vec<T, N> a, vec<T, N> b) {
  T sum = T(a[0] * b[0]);
  for (int i = 1; i < N; ++i) {
    sum = T(sum + a[i] * b[i]);
  }
  return sum;
}

}  // namespace metal

// Metal declares these at global scope, whatever is included.
using metal::vec;
#define SIMT_VEC_TYPES(name, T)     \
  using name##2 = metal::vec<T, 2>; \
  using name##3 = metal::vec<T, 3>; \
  using name##4 = metal::vec<T, 4>;
SIMT_VEC_TYPES(char, char)
SIMT_VEC_TYPES(uchar, unsigned char)
SIMT_VEC_TYPES(short, short)
SIMT_VEC_TYPES(ushort, unsigned short)
SIMT_VEC_TYPES(int, int)
SIMT_VEC_TYPES(uint, unsigned int)
SIMT_VEC_TYPES(long, long)
SIMT_VEC_TYPES(ulong, unsigned long)
SIMT_VEC_TYPES(float, float)
SIMT_VEC_TYPES(half, half)
SIMT_VEC_TYPES(bfloat, bfloat)
#undef SIMT_VEC_TYPES
