#include "csrc/mlx/facts/machine.h"

#include "csrc/cpu/isa.h"
#include "csrc/cpu/matmul.h"
#include "csrc/cpu/peak.h"
#include "csrc/cpu/profile.h"
#include "csrc/cpu/thread_pool.h"

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

}  // namespace nibble::machine
