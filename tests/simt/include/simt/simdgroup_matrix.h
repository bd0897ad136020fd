// simdgroup_matrix<T, 8, 8>: two elements a lane.
#pragma once

#include "simt/simdgroup.h"
#include "simt/vec.h"

namespace metal {

// A lane's two elements are (row, column) and (row, column + 1). Apple
// documents no layout; this is the one of MLX's get_coord.
SIMT_DEVICE inline int fragment_row(int lane) {
  return (lane & 16) >> 2 | (lane & 6) >> 1;
}
SIMT_DEVICE inline int fragment_column(int lane) {
  return (lane & 8) >> 1 | (lane & 1) << 1;
}

template <class T, int rows, int columns>
struct simdgroup_matrix {
  static_assert(rows == 8 && columns == 8, "Metal has 8x8 only");
  vec<T, 2> elements;

  simdgroup_matrix() = default;
  SIMT_DEVICE explicit simdgroup_matrix(T all) : elements(all) {}
  SIMT_DEVICE thread vec<T, 2>& thread_elements() thread { return elements; }
};
using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T>
SIMT_DEVICE inline simdgroup_matrix<T, 8, 8> make_filled_simdgroup_matrix(
    T all) {
  return simdgroup_matrix<T, 8, 8>(all);
}

// The product as one call of a GPU's instruction.
SIMT_DEVICE SIMT_HARDWARE void multiply_in_lanes(float a0,
                                                 float a1,
                                                 float b0,
                                                 float b1,
                                                 thread float& d0,
                                                 thread float& d1,
                                                 SIMT_SITE) {
  rt::multiply_add_8x8(a0,
                       a1,
                       b0,
                       b1,
                       d0,
                       d1,
                       fragment_row(rt::lane()),
                       fragment_column(rt::lane()),
                       SIMT_AT);
}

template <class D, class A, class B, class C>
SIMT_DEVICE inline void simdgroup_multiply_accumulate(
    thread simdgroup_matrix<D, 8, 8>& d,
    thread simdgroup_matrix<A, 8, 8>& a,
    thread simdgroup_matrix<B, 8, 8>& b,
    thread simdgroup_matrix<C, 8, 8>& c,
    SIMT_SITE) {
  float d0 = float(c.elements.x);
  float d1 = float(c.elements.y);
  multiply_in_lanes(float(a.elements.x),
                    float(a.elements.y),
                    float(b.elements.x),
                    float(b.elements.y),
                    d0,
                    d1,
                    SIMT_AT);
  d.elements.x = D(d0);
  d.elements.y = D(d1);
}

template <class D, class A, class B>
SIMT_DEVICE inline void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                           thread simdgroup_matrix<A, 8, 8>& a,
                                           thread simdgroup_matrix<B, 8, 8>& b,
                                           SIMT_SITE) {
  simdgroup_matrix<D, 8, 8> zero(D(0));
  simdgroup_multiply_accumulate(d, a, b, zero, SIMT_AT);
}

// Element (row, column) of the matrix whose corner is `origin` = (x, y).
template <class T, class Pointer>
SIMT_DEVICE inline void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& m,
                                       Pointer from,
                                       ulong stride = 8,
                                       ulong2 origin = ulong2(0, 0),
                                       bool transposed = false) {
  int row = fragment_row(rt::lane());
  int column = fragment_column(rt::lane());
  for (int i = 0; i < 2; ++i) {
    ulong y = origin.y + (transposed ? column + i : row);
    ulong x = origin.x + (transposed ? row : column + i);
    m.elements[i] = T(from[y * stride + x]);
  }
}

template <class T, class Pointer>
SIMT_DEVICE inline void simdgroup_store(thread simdgroup_matrix<T, 8, 8>& m,
                                        Pointer to,
                                        ulong stride = 8,
                                        ulong2 origin = ulong2(0, 0),
                                        bool transposed = false) {
  int row = fragment_row(rt::lane());
  int column = fragment_column(rt::lane());
  for (int i = 0; i < 2; ++i) {
    ulong y = origin.y + (transposed ? column + i : row);
    ulong x = origin.x + (transposed ? row : column + i);
    to[y * stride + x] = m.elements[i];
  }
}

}  // namespace metal
