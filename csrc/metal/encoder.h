// Runs launch plans on MLX's Metal device. The same header serves elsewhere,
// where no_metal.cpp says that there is none.
#pragma once

#include <array>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/stream.h"

namespace nibble::metal {

// The arrays that a plan's operands stand for, all row-contiguous and, `out`
// included, allocated. A plan without an operand may leave its pointer null.
struct Operands {
  // Of a product beside the first, of those that one launch computes.
  struct Joined {
    const mlx::core::array* w = nullptr;
    const mlx::core::array* scales = nullptr;
    const mlx::core::array* biases = nullptr;
    const mlx::core::array* bias = nullptr;
    mlx::core::array* out = nullptr;
  };

  const mlx::core::array* w = nullptr;
  const mlx::core::array* scales = nullptr;
  const mlx::core::array* biases = nullptr;
  const mlx::core::array* up_w = nullptr;
  const mlx::core::array* up_scales = nullptr;
  const mlx::core::array* up_biases = nullptr;
  const mlx::core::array* x = nullptr;
  const mlx::core::array* lhs_indices = nullptr;
  const mlx::core::array* rhs_indices = nullptr;
  const mlx::core::array* bias = nullptr;
  const mlx::core::array* residual = nullptr;
  mlx::core::array* out = nullptr;
  std::array<Joined, 2> joined;
  // From one launch to the next: encode() allocates it.
  mlx::core::array* sums = nullptr;
};

// Whether there is a GPU that the functions below can be called for.
bool is_available();

// What the planner may know of `device`.
DeviceProfile device_profile(mlx::core::Device device);

// Appends the launches to the stream's command buffer, in order; MLX commits
// it. Throws std::runtime_error if a kernel does not compile on this machine
// or takes fewer threads than its plan has.
void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mlx::core::Stream stream);

}  // namespace nibble::metal
