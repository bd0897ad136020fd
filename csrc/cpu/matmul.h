// The native CPU backend: quantized products and dequantization on all cores.
// Knows formats and problems, never plans or MLX.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/planner.h"
#include "csrc/core/problem.h"

namespace nibble::cpu {

// Row-contiguous; shapes and dtypes as in MatmulProblem.
struct MatmulOperands {
  const uint32_t* w;
  const void* scales;
  const void* biases;
  const void* x;
  void* y;
};

// y = x @ w_hat^T or x @ w_hat, accumulated in fp32 and rounded once.
// Blocks until done; uses the calling thread and the pool. Needs
// held(problem.format). Safe to call from several threads at once.
void matmul(const MatmulProblem& problem, const MatmulOperands& operands);

// w_hat [rows, K], rounded once to problem.dtype.
void dequantize(const DequantizeProblem& problem,
                const uint32_t* w,
                const void* scales,
                const void* biases,
                void* out);

}  // namespace nibble::cpu
