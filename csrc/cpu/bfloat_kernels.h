// Products in bfloat16.
#pragma once

#include "csrc/cpu/kernels.h"

namespace nibble::cpu {

// Weight rows that are computed together, and the numbers of a row of x that
// lie together: those of a tile.
inline constexpr int kBfloatRows = 32;
inline constexpr int kBfloatRun = 32;

// Activations have one scale for each row, and each is the sum of one or two
// bfloat16. `codes` is [runs, planes, rows, kBfloatRun].
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

  // Bfloat16 that a number of x is the sum of.
  int planes;
};

// How many bfloat16 a number is the sum of: one of x, then one of weights with
// integer codes. Codes that are floats need one.
#if defined(__x86_64__)
extern const BfloatKernels kAmxBfloatKernels;        // 1, 1
extern const BfloatKernels kAmxBfloatByPairKernels;  // 1, 2
extern const BfloatKernels kAmxBfloatPairKernels;    // 2, 2
#endif

}  // namespace nibble::cpu
