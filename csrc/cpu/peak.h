// What the cores can do at most: what a share of it refers to.
#pragma once

#include <cstdint>

namespace nibble::cpu {

// Multiplies and adds registers on all threads, `times` rounds on each; returns
// the floating-point operations done. Blocks until done.
int64_t multiply_registers(int64_t times);

}  // namespace nibble::cpu
