// The planner's answers. Each thread keeps those of its last problems, because
// a model asks the same questions for every layer and token.
//
// A plan depends on the problem and the device alone, and the problem has the
// options and the tuned choice. So another option, table or device is another
// question. Whether kernels are trusted is no part of a plan: ask each time.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble::plans {

// The launches of a problem; null if no kernel of ours computes it.
using Plan = std::shared_ptr<const std::vector<LaunchPlan>>;

// The functions of core/planner.h.
Plan plan(const MatmulProblem& problem, const DeviceProfile& device);
Plan plan(const GatherProblem& problem, const DeviceProfile& device);
Plan plan(const DequantizeProblem& problem, const DeviceProfile& device);
Plan plan_swiglu(const MatmulProblem& problem, const DeviceProfile& device);
Plan plan_swiglu(const GatherProblem& problem, const DeviceProfile& device);
Plan plan_gradient(const MatmulProblem& product, const DeviceProfile& device);
Plan plan_gradient(const GatherProblem& product, const DeviceProfile& device);
Plan plan_joint(const std::vector<MatmulProblem>& products,
                const DeviceProfile& device);

// The most plans that a thread keeps of each function: some 0.5 KB each. The
// layers of a model are tens of problems; each length of a prompt has its own.
inline constexpr size_t kMostPlans = 512;

// The number of plans that this thread keeps.
size_t kept();

}  // namespace nibble::plans
