// The instruction sets that this build and this machine have, and the one that
// is in use.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "csrc/cpu/bfloat_kernels.h"
#include "csrc/cpu/kernels.h"
#include "csrc/cpu/layer_kernels.h"

namespace nibble::cpu {

struct Isa {
  std::string_view name;
  const Kernels& kernels;
  const IntegerKernels& int8;
  // Null where exact products are as fast.
  const IntegerKernels* int16;
  const LayerKernels& layers;
  // Products in bfloat16, as Activations names them. Null where the instruction
  // set has no such tiles.
  const BfloatKernels* bfloat16 = nullptr;
  const BfloatKernels* bfloat16_by_pair = nullptr;
  const BfloatKernels* bfloat16_pair = nullptr;
};

// Returns the names of those that can run here, slowest first: some of
// "scalar", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx"; on Arm some of
// "scalar", "neon", "neon_dotprod", "neon_i8mm".
std::vector<std::string_view> available_isas();

// Returns the one in use: the last of these, or the one that NIBBLE_CPU_ISA
// names. Throws std::invalid_argument if it names none of them.
const Isa& isa();

}  // namespace nibble::cpu
