// Which instruction sets this build holds, this machine has, and is used.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {

// "scalar", "avx2", "avx512", slowest first: those that can run here.
std::vector<std::string_view> available_isas();

// The one in use: the fastest, or what NIBBLE_CPU_ISA or set_isa says.
// Throws std::invalid_argument if NIBBLE_CPU_ISA names none of the available.
std::string_view isa();

// Uses another from the next call on. Throws as isa() does.
void set_isa(std::string_view name);

const Kernels& kernels();
const LayerKernels& layer_kernels();

}  // namespace nibble::cpu
