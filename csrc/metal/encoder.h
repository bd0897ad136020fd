// Runs launch plans on MLX's Metal device. Systems without Metal have the same
// functions (no_metal.cpp), which throw.
#pragma once

#include <string>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/operand.h"
#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/stream.h"

namespace nibble::metal {

// The arrays of a plan's operands, all allocated, the outputs row-contiguous.
// Null where the plan has no such operand.
using Operands = Bound<mlx::core::array>;

// True if there is a GPU, which the functions below need.
bool is_available();

// The properties of `device` that the planner reads.
DeviceProfile device_profile(mlx::core::Device device);

// Has kernels compiled with NIBBLE_FENCES of kernels/mma.h from now on.
void set_fences(bool fences);

// Compiles these kernels in one library, and makes their pipelines, where
// encode() then finds them: the compiler reads their common text once. Does
// nothing if Metal refuses the library; encode() then compiles each kernel by
// itself and names the culprit.
void compile(const std::vector<std::string>& kernels);

// Appends the launches to the stream's command buffer, in order; MLX commits
// it. Allocates kSums, and copies the inputs that are not row-contiguous.
// Throws std::runtime_error if a kernel does not compile on this machine or
// runs with fewer threads than its plan has. MLX keeps the inputs of the node
// that it evaluates until the GPU is done; the caller makes all operands inputs
// of that node.
void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mlx::core::Stream stream);

}  // namespace nibble::metal
