// Which instruction sets this build holds, this machine has, and is used.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {

struct Isa {
  std::string_view name;
  const Kernels& kernels;
  const Int8Kernels& int8;
  const LayerKernels& layers;
};

// Names of those that can run here, slowest first: of "scalar", "avx2",
// "avx2_vnni", "avx512", "avx512_vnni"; of "scalar", "neon", "neon_dotprod",
// "neon_i8mm" on Arm.
std::vector<std::string_view> available_isas();

// The one in use: the last of these, or what NIBBLE_CPU_ISA or set_isa says.
// Throws std::invalid_argument if NIBBLE_CPU_ISA names none of them.
const Isa& isa();

// Uses another from the next call on. Throws as isa() does.
void set_isa(std::string_view name);

}  // namespace nibble::cpu
