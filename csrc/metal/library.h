// Compiles kernels at their first use.
#pragma once

#include <string>

#include "mlx/backend/metal/device.h"

namespace nibble::metal {

// The pipeline of a kernel of core's. MLX keeps it until the process ends.
// Throws std::runtime_error with the compiler's message if Metal refuses the
// text.
MTL::ComputePipelineState* pipeline(mlx::core::metal::Device& device,
                                    const std::string& kernel);

}  // namespace nibble::metal
