// Products of the native CPU backend whose rows choose their weights, as the
// experts of a mixture do. What matmul.h says of all its functions holds here.
#pragma once

#include <cstdint>

#include "csrc/core/problem.h"
#include "csrc/cpu/matmul.h"

namespace nibble::cpu {

// Of GatherProblem, [B] each. An index beyond the last counts as the last:
// wrong indices give wrong numbers, never a stray read.
struct Indices {
  const uint32_t* lhs;
  const uint32_t* rhs;
};

// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T, or @ w_hat[rhs[b]]. The rows of an
// expert, wherever they are, meet its weights together.
void gather_matmul(const GatherProblem& problem,
                   const MatmulOperands& operands,
                   const Indices& indices,
                   Activations activations = Activations::kExact);

// y[b] = silu(x[lhs[b]] @ gate_hat[rhs[b]]^T) * (x[lhs[b]] @ up_hat[rhs[b]]^T).
void gather_swiglu(const GatherProblem& problem,
                   const SwigluOperands& operands,
                   const Indices& indices,
                   Activations activations = Activations::kExact);

}  // namespace nibble::cpu
