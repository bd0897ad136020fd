// The executor of this machine's GPU: Metal's, or CUDA's.
#pragma once

#include <string>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/operand.h"
#include "mlx/array.h"
#include "mlx/device.h"
#include "mlx/stream.h"

namespace nibble::executor {

namespace mx = mlx::core;

using Operands = Bound<mx::array>;

// True if our kernels run on a GPU here. The functions below need one.
bool is_available();

// The interface of this machine's GPU; Metal's if there is none.
Api api();

// The properties of `device` that the planner reads.
DeviceProfile device_profile(mx::Device device);

// Compiles these kernels, which is faster than one by one.
void compile(const std::vector<std::string>& kernels);

// Gives `out`, the output of a node of this stream, memory of its own.
void allocate(mx::array& out, mx::Stream stream);

// Runs the launches in order, after what the stream has been given before.
void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream);

}  // namespace nibble::executor
