// Measures peak FMA throughput, the 100 % that benchmarks refer to.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Returns the number of floating-point operations: all threads multiply and add
// registers, `times` rounds each. Blocks until done.
int64_t multiply_registers(int64_t times);

}  // namespace nibble::cpu
