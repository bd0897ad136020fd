// Products of codes that are floats, with activations in bfloat16.
#pragma once

#include "csrc/cpu/kernels.h"

namespace nibble::cpu {

// Weight rows that are computed together, and the numbers of a row of x that
// lie together: those of a tile.
inline constexpr int kBfloatRows = 32;
inline constexpr int kBfloatRun = 32;

// More forms of activations (IntegerForm): a bfloat16, and a bfloat16 of which
// another is the rest.
struct Bfloat {};
struct BfloatPair {};

template <>
struct IntegerForm<Bfloat> {
  using Code = uint16_t;
  static constexpr int kPlanes = 1;
};
template <>
struct IntegerForm<BfloatPair> {
  using Code = uint16_t;
  static constexpr int kPlanes = 2;
};

// Products with one of these forms. As QuantizedRows, activations have one
// scale for each row, and `codes` is [runs, rows, planes, kBfloatRun].
struct BfloatKernels {
  // out = x [rows, K]. The scale is a power of two near the row's largest
  // number, and not finite if that is not.
  void (*split)(Dtype dtype,
                QuantFormat format,
                const void* x,
                int rows,
                int K,
                const QuantizedRows& out);

  // As Kernels::multiply. Returns the end of the rows that were computed: that
  // of `rows`, or the first of kBfloatRows of which bfloat16 cannot hold one.
  int (*multiply)(const Weights& w,
                  const QuantizedRows& x,
                  int M,
                  Range rows,
                  Dtype dtype,
                  void* y,
                  float* scratch);
};

#if defined(__x86_64__)
extern const BfloatKernels kAmxBfloatKernels;
extern const BfloatKernels kAmxBfloatPairKernels;
#endif

}  // namespace nibble::cpu
