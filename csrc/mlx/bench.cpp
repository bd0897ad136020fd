#include "csrc/mlx/bench.h"

#include "csrc/cpu/peak.h"

namespace nibble::bench {

int64_t cpu_multiply(int64_t times) {
  return cpu::multiply_registers(times);
}

}  // namespace nibble::bench
