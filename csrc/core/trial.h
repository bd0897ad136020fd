// A small problem for each kernel: what a machine that has never run the kernel
// is tried on.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/kernel_name.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

struct Trial {
  MatmulProblem problem;  // a dequantization has its N and K, and no x
  bool dequantize = false;
  std::vector<LaunchPlan> launches;
};

// A problem with ragged edges that `kernel` may be planned for; nullopt if no
// plan for this device has it.
std::optional<Trial> trial(const KernelId& kernel, const DeviceProfile& device);

}  // namespace nibble
