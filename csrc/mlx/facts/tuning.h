// The tuned tables of this process. Each has a number, which an operation's
// options can carry and compare.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/core/tuning.h"
#include "csrc/mlx/options.h"
#include "mlx/device.h"
#include "mlx/dtype.h"

namespace nibble::tuning {

namespace mx = mlx::core;

// rows, N, K, dtype, scale_dtype, bits, group_size, symmetric.
using Shape = std::tuple<int, int, int, mx::Dtype, mx::Dtype, int, int, bool>;

// The problem of x @ w_hat^T. Throws if our kernels do not support its types.
MatmulProblem problem(const Shape& shape);

// Keeps a table until the process ends. Returns its number, from 1 on.
int add(Tuning table);

// Sets the problem's choice to that of the options' table. A batch-invariant
// problem is not left to MLX, where rows depend on their number.
void consult(MatmulProblem& problem,
             const ops::MatmulOptions& options,
             const mx::Device& device);

// The names of all candidates for a problem, the planner's own choice first.
// Empty if only MLX computes it.
std::vector<std::string> candidates(const MatmulProblem& problem,
                                    bool int8,
                                    const mx::Device& device);

// The name of the candidate that runs; kLeaveToMlx if none does.
std::string chosen(const MatmulProblem& problem,
                   bool int8,
                   const mx::Device& device);

}  // namespace nibble::tuning
