// The native CPU backend: quantized products and dequantization on all cores.
// It knows formats, problems and plans. It never plans and knows nothing of
// MLX.
//
// Every function blocks until done, uses the calling thread and the pool, and
// is safe to call from several threads at once. Formats as in core/format.h.
// Products are accumulated in fp32 and rounded once; a row of y has the same
// bits for every number of rows.
#pragma once

#include <vector>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/operands.h"

namespace nibble::cpu {

// y = x @ w_hat^T + bias + residual, or x @ w_hat.
void matmul(const MatmulProblem& problem,
            const CpuPlan& plan,
            const MatmulOperands& operands);

struct PlannedMatmul {
  MatmulProblem problem;
  CpuPlan plan;
  MatmulOperands operands;
};

// The same, for several products. Those of one x that read it in the same form
// are computed together: x is prepared once, and threads share out all chunks.
void matmuls(const std::vector<PlannedMatmul>& products);

// y = silu(x @ gate_hat^T) * (x @ up_hat^T), silu(v) = v / (1 + exp(-v)). The
// problem has no epilogue.
void swiglu_matmul(const MatmulProblem& problem,
                   const CpuPlan& plan,
                   const SwigluOperands& operands);

// w_hat [rows, K], rounded once to problem.dtype.
void dequantize(const DequantizeProblem& problem,
                const CpuDequantizePlan& plan,
                const QuantizedOperands& operands,
                void* out);

}  // namespace nibble::cpu
