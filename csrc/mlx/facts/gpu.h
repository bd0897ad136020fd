// Facts and switches of the executors, for the bindings: they may include
// csrc/mlx only.
#pragma once

#include "csrc/metal/device_profile.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/executor.h"

namespace nibble::gpu {

using executor::compile;
using executor::is_available;
using metal::GpuFacts;
using metal::set_facts;
using metal::set_fences;

}  // namespace nibble::gpu
