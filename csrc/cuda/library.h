// Compiles kernels at their first use, with the NVRTC that MLX has loaded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "csrc/cuda/symbols.h"

namespace nibble::cuda {

// A kernel of core's on the device of the current context, allowed this much
// shared memory. It stays loaded until the process ends. Throws
// std::runtime_error with the compiler's message if NVRTC refuses the text.
Function function(const std::string& kernel, uint32_t shared_bytes);

// Compiles these kernels on all cores; function() then loads them. One that
// does not compile is left to function().
void compile(const std::vector<std::string>& kernels);

// Whether the tensor cores of the device of the current context read shared
// memory (wgmma).
bool has_wgmma();

// Throws std::runtime_error if a call of `op` failed.
void require_success(Result result, const char* op);

}  // namespace nibble::cuda
