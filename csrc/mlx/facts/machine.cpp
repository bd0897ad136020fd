#include "csrc/mlx/facts/machine.h"

#include <cstdlib>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "csrc/cpu/isa.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/peak.h"
#include "csrc/cpu/profile.h"
#include "csrc/cpu/thread_pool.h"
#include "mlx/memory.h"

namespace nibble::machine {

void check_environment() {
  cpu::isa();
  cpu::thread_count();
}

std::string cpu_isa() {
  return std::string(cpu::isa().name);
}

int cpu_threads() {
  return cpu::profile().threads;
}

int64_t cpu_multiply(int64_t times) {
  return cpu::multiply_registers(times);
}

void release_memory() {
  mlx::core::clear_cache();
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

}  // namespace nibble::machine
