// Facts and switches of the Metal executor, for the bindings: they may include
// csrc/mlx only.
#pragma once

#include "csrc/metal/device_profile.h"
#include "csrc/metal/encoder.h"

namespace nibble::gpu {

using metal::compile;
using metal::GpuFacts;
using metal::set_facts;
using metal::set_fences;

}  // namespace nibble::gpu
