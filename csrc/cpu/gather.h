// Products of the native CPU backend whose rows choose their weights, as the
// experts of a mixture do. matmul.h states the properties of every function.
#pragma once

#include <cstdint>

#include "csrc/core/cpu_plan.h"
#include "csrc/core/problem.h"
#include "csrc/cpu/operands.h"

namespace nibble::cpu {

// The indices of GatherProblem, [B] each. An index beyond the last counts as
// the last: wrong indices give wrong numbers, but never read other memory.
struct Indices {
  const uint32_t* lhs;
  const uint32_t* rhs;
};

// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T, or @ w_hat[rhs[b]]. All rows of an
// expert meet its weights together, wherever they are in x.
void gather_matmul(const GatherProblem& problem,
                   const CpuGatherPlan& plan,
                   const MatmulOperands& operands,
                   const Indices& indices);

// y[b] = silu(x[lhs[b]] @ gate_hat[rhs[b]]^T) * (x[lhs[b]] @ up_hat[rhs[b]]^T).
void gather_swiglu(const GatherProblem& problem,
                   const CpuGatherPlan& plan,
                   const SwigluOperands& operands,
                   const Indices& indices);

}  // namespace nibble::cpu
