// The errors of a dispatch, for Python to print.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace simt {

struct Finding {
  std::string kind;  // "race", "out of bounds", ...
  std::string text;
  uint32_t group[3] = {0, 0, 0};
  int thread = -1;                     // in the threadgroup; -1: several
  std::vector<const void*> code = {};  // places in the kernel
  uint64_t count = 1;                  // occurrences
};

struct Counters {
  uint64_t threadgroups = 0;
  uint64_t threads = 0;
  uint64_t threadgroup_barriers = 0;
  uint64_t simdgroup_barriers = 0;
  uint64_t shuffles = 0;        // simd_shuffle, in words of a lane
  uint64_t fixed_shuffles = 0;  // all others
  uint64_t reductions = 0;
  uint64_t matrix_products = 0;
  uint64_t threadgroup_bytes = 0;
};

}  // namespace simt
