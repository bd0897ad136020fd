// What measuring needs to know of the backends.
#pragma once

#include <cstdint>

namespace nibble::bench {

// The floating-point operations of `times` rounds of multiplications on all
// threads of the CPU backend, which are done when it returns.
int64_t cpu_multiply(int64_t times);

}  // namespace nibble::bench
