// The tuned tables of this process. Each has a number, which an operation's
// options can carry and compare. decision.h asks them.
#pragma once

#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/core/tuning.h"
#include "csrc/mlx/options.h"
#include "mlx/device.h"
#include "mlx/dtype.h"

namespace nibble::tuning {

namespace mx = mlx::core;

// rows, N, K, dtype, scale_dtype, bits, group_size, mode, experts, sorted. The
// mode is ModeInfo::name. 0 experts: one matrix; else each row chooses one.
using Shape = std::tuple<int,
                         int,
                         int,
                         mx::Dtype,
                         mx::Dtype,
                         int,
                         int,
                         std::string,
                         int,
                         bool>;
// A shape, int8_activations and a candidate.
using Choice = std::tuple<Shape, bool, std::string>;

// The problem of x @ w_hat^T. Throws if our kernels do not support its types.
MatmulProblem problem(const Shape& shape);
// The same with rows that choose their matrix.
GatherProblem gather_problem(const Shape& shape);

// Keeps a table until the process ends. Returns its number, from 1 on.
// `complete`: see Tuning.
int add(const std::vector<Choice>& choices,
        bool complete,
        const mx::Device& device);
// Has a table of add() give these choices from now on.
void replace(int number, const std::vector<Choice>& choices);

// The table of the options; null for none. It lives until the process ends.
const Tuning* table(const ops::MatmulOptions& options);

// Sets whether the problem is batch-invariant, as the options say, and its
// choice, from their table. A batch-invariant problem is not left to MLX, where
// rows depend on their number.
void consult(MatmulProblem& problem,
             const ops::MatmulOptions& options,
             const mx::Device& device);

// The choice for a product whose rows choose their weights on a GPU.
std::string_view choice(const GatherProblem& problem,
                        const ops::MatmulOptions& options);

// The names of all candidates for a problem, the planner's own choice first.
// Empty if only MLX computes it.
std::vector<std::string> candidates(const MatmulProblem& problem,
                                    bool int8,
                                    const mx::Device& device);

// The kernels that compute a problem on a GPU as its table says.
std::vector<std::string> kernels(const Shape& shape, const std::string& choice);
// Those that compute it together with others: joint products and swiglu.
std::vector<std::string> joining_kernels(const Shape& shape);

// The name of the candidate that runs; kLeaveToMlx if none does.
std::string chosen(const MatmulProblem& problem,
                   bool int8,
                   const mx::Device& device);

}  // namespace nibble::tuning
