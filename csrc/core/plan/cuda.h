// Products on CUDA.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// The default plan for `p`, which comes from merge_rows(); nullopt if no kernel
// does. Every evaluation asks, and making the name of a kernel takes time.
std::optional<std::vector<LaunchPlan>> plan_on_cuda(const MatmulProblem& p);

// The plans of other problems.
std::optional<std::vector<LaunchPlan>> plan_on_cuda(const GatherProblem& p);

// All plans for `p`, the default first. Empty if
// no kernel does.
std::vector<std::vector<LaunchPlan>> candidates_on_cuda(const MatmulProblem& p);

std::optional<std::vector<LaunchPlan>> plan_on_cuda(const DequantizeProblem& p);

// The same problem with biases that are read: kernels for CUDA have one form.
template <typename Problem>
Problem without_symmetry(Problem p) {
  if (p.format.mode == Mode::kSymmetric) {
    p.format.mode = Mode::kAffine;
  }
  return p;
}

}  // namespace nibble
