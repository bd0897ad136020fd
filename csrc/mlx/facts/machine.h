// What measuring needs to know of the backends.
#pragma once

#include <cstdint>

namespace nibble::machine {

// Throws std::invalid_argument if the environment asks the CPU backend for what
// it cannot do. Once, before any work: a task on a stream could not report it.
void check_environment();

// The floating-point operations of `times` rounds of multiplications on all
// threads of the CPU backend, which are done when it returns.
int64_t cpu_multiply(int64_t times);

}  // namespace nibble::machine
