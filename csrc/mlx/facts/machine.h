// The properties of this machine's CPU backend.
#pragma once

#include <cstdint>
#include <string>

namespace nibble::machine {

// Throws std::invalid_argument if the environment asks for an instruction set
// or a number of threads that the CPU backend does not have. Called before any
// work: a task on a stream cannot report an error.
void check_environment();

// The instruction set that the CPU backend uses: "avx512".
std::string cpu_isa();

// The number of threads that the CPU backend uses.
int cpu_threads();

// Returns the number of floating-point operations in `times` rounds of
// multiplications on all threads, after they are done.
int64_t cpu_multiply(int64_t times);

// Gives the memory of freed arrays back to the system, where the C library can.
void release_memory();

}  // namespace nibble::machine
