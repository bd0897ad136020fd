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

enum class Activations {
  kExact,
  // Rounded to 8 bits with one scale for each row and group of the weights'
  // format; only if problem.transpose. Row m of y is then off by at most
  //   sum over g of (1/2 + 2^-15) step[m, g] * sum over k in g of |w_hat[n, k]|
  // beyond the rounding of fp32 sums, with
  // step[m, g] = max(max over k in g of |x[m, k]| / 127, 2^-126).
  kInt8,
};

// y = x @ w_hat^T or x @ w_hat, accumulated in fp32 and rounded once. A row
// of y has the same bits whatever the number of rows.
// Blocks until done; uses the calling thread and the pool. Bits 2 to 6 and 8,
// groups of 32, 64 and 128. Safe to call from several threads at once.
void matmul(const MatmulProblem& problem,
            const MatmulOperands& operands,
            Activations activations = Activations::kExact);

// w_hat [rows, K], rounded once to problem.dtype.
void dequantize(const DequantizeProblem& problem,
                const uint32_t* w,
                const void* scales,
                const void* biases,
                void* out);

}  // namespace nibble::cpu
