// The plans of cuda_qmm_wgmma, which needs compute capability 9.0.
#pragma once

#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// One for each tile, the fastest first; none if it does not compute this. A
// problem comes from merge_rows().
std::vector<LaunchPlan> wgmma_launches(const MatmulProblem& p,
                                       const DeviceProfile& device);

// True if the first of them is the fastest way.
bool wgmma_is_fastest(const MatmulProblem& p, const DeviceProfile& device);

}  // namespace nibble
