// From a kernel's name to the pipeline that runs it, compiled at first use.
#pragma once

#include <string>

#include "mlx/backend/metal/device.h"

namespace nibble::metal {

// The pipeline of one of core's instances. Compiles the kernel's text the
// first time; MLX keeps it for the life of the process. Throws
// std::runtime_error with the compiler's words if Metal refuses the text.
MTL::ComputePipelineState* pipeline(mlx::core::metal::Device& device,
                                    const std::string& kernel);

}  // namespace nibble::metal
