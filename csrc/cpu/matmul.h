// The native CPU backend: quantized products and dequantization on all cores.
// Knows formats and problems, never plans or MLX.
//
// Every function blocks until done, uses the calling thread and the pool, and
// is safe to call from several threads at once. Bits 2 to 6 and 8, groups of
// 32, 64 and 128. All arrays are row-contiguous. Products are accumulated in
// fp32 and rounded once; a row of y has the same bits whatever the number of
// rows. Biases of a symmetric format are not read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "csrc/core/cpu_planner.h"
#include "csrc/core/problem.h"

namespace nibble::cpu {

class Packed;

// Quantized matrices [.., N, K], one below the other.
struct QuantizedOperands {
  const uint32_t* w;
  const void* scales;
  const void* biases;
  // The same laid out anew; packed.h.
  const Packed* packed = nullptr;
};

// Shapes and dtypes as in MatmulProblem.
struct MatmulOperands {
  QuantizedOperands weights;
  const void* x;
  void* y;
  // Of the problem's epilogue, of problem.dtype.
  const void* bias = nullptr;      // [N]
  const void* residual = nullptr;  // of y's shape
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

// What the planner may know of this machine.
CpuProfile profile();

// y = x @ w_hat^T + bias + residual, or x @ w_hat.
void matmul(const MatmulProblem& problem,
            const MatmulOperands& operands,
            Activations activations = Activations::kExact);

// y = silu(x @ gate_hat^T) * (x @ up_hat^T), silu(v) = v / (1 + exp(-v)). Gate
// and up are of one shape, format and scale_dtype; no epilogue.
struct SwigluOperands {
  QuantizedOperands gate, up;
  const void* x;
  void* y;
};

void swiglu_matmul(const MatmulProblem& problem,
                   const SwigluOperands& operands,
                   Activations activations = Activations::kExact);

// w_hat [rows, K], rounded once to problem.dtype.
void dequantize(const DequantizeProblem& problem,
                const QuantizedOperands& operands,
                void* out);

}  // namespace nibble::cpu
