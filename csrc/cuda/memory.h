// The memory of arrays on MLX's CUDA device.
#pragma once

#include <cstddef>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::cuda {

// Gives `out` memory of the device that the stream's kernels may write.
void allocate(mlx::core::array& out, mlx::core::Stream stream);

// Where the array begins, as kernels see it.
std::byte* address(const mlx::core::array& a);

}  // namespace nibble::cuda
