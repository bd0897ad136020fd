// Runs launch plans on MLX's CUDA device: they become nodes of its graph.
#pragma once

#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/operand.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::cuda {

using Operands = Bound<mlx::core::array>;

// True if this MLX has a CUDA device whose parts we use (symbols.h).
bool is_available();

// The properties that the planner reads.
DeviceProfile device_profile();

// Compiles these kernels, several at a time.
void compile(const std::vector<std::string>& kernels);

// Appends the launches to the stream's graph, in order. All operands have
// memory; inputs that are not row-contiguous are copied. MLX keeps the inputs
// of the node that it evaluates until the GPU is done. Throws
// std::runtime_error if a kernel does not compile on this machine.
void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mlx::core::Stream stream);

}  // namespace nibble::cuda
