// y = x @ w^T with weights that are not quantized, on all cores. Blocks until
// done. The bits of a row do not depend on the number of rows or threads.
#pragma once

#include "csrc/core/dtype.h"
#include "csrc/cpu/layers.h"

namespace nibble::cpu {

struct DenseProduct {
  int64_t M;
  int N, K;
  Dtype dtype;  // of x and y
  Dtype weight_dtype;
  RowGrid x;         // M rows
  const void* w;     // [N, K], row-contiguous
  const void* bias;  // [N] of dtype, or null
  void* y;           // [M, N]
};

void multiply(const DenseProduct& problem);

}  // namespace nibble::cpu
