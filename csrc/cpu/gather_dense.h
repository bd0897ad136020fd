// Products with weights that are not quantized, whose rows choose their
// weights. Blocks until done. The bits of a row do not depend on other rows or
// threads.
#pragma once

#include "csrc/core/dtype.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/gather.h"

namespace nibble::cpu {

// y[b] = x[lhs[b]] @ w[rhs[b]]^T. The format of the problem is not read. All
// arrays are row-contiguous.
struct DenseGather {
  GatherProblem problem;
  Dtype weight_dtype;
  const void* x;  // [rows, M, K]
  const void* w;  // [experts, N, K]
  void* y;        // [B, M, N]
};

void gather_dense(const DenseGather& gather, const Indices& indices);

}  // namespace nibble::cpu
