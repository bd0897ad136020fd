// Products on CUDA.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// The functions of planner.h on CUDA. A MatmulProblem comes from merge_rows().
std::optional<std::vector<LaunchPlan>> plan_on_cuda(
    const MatmulProblem& p, const DeviceProfile& device);
std::optional<std::vector<LaunchPlan>> plan_on_cuda(const GatherProblem& p);
std::optional<std::vector<LaunchPlan>> plan_on_cuda(const DequantizeProblem& p);
std::optional<std::vector<LaunchPlan>> plan_swiglu_on_cuda(
    const MatmulProblem& p);
std::optional<std::vector<LaunchPlan>> plan_swiglu_on_cuda(
    const GatherProblem& p);
std::vector<std::vector<LaunchPlan>> candidates_on_cuda(
    const MatmulProblem& p, const DeviceProfile& device);

// The same problem with biases that are read: kernels for CUDA have
// one form of the affine modes.
template <typename Problem>
Problem without_symmetry(Problem p) {
  if (p.format.mode == Mode::kSymmetric) {
    p.format.mode = Mode::kAffine;
  }
  return p;
}

}  // namespace nibble
