#include "csrc/cpu/peak.h"

#include <atomic>

#include "csrc/cpu/isa.h"
#include "csrc/cpu/thread_pool.h"

namespace nibble::cpu {

int64_t multiply_registers(int64_t times) {
  std::atomic<int64_t> operations = 0;
  parallel_for(thread_count(), [&](int) {
    float sink = 0;
    operations += isa().kernels.multiply_registers(times, &sink);
  });
  return operations;
}

}  // namespace nibble::cpu
