// Groups the accesses of 32 lanes into memory requests: counts the cache lines
// that a load of a simdgroup touches, and the bank conflicts of threadgroup
// accesses. A model, which ../README.md describes; it was not compared with a
// GPU.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "threadgroup.h"

namespace simt {

// Sums over requests. "Ideal" is the count if the same bytes were contiguous
// and aligned.
struct RequestCounts {
  uint64_t requests = 0;
  // Bytes that lanes of one request share count once.
  uint64_t bytes = 0;
  uint64_t lines_64 = 0, ideal_lines_64 = 0;
  uint64_t lines_128 = 0, ideal_lines_128 = 0;
  // Rounds that 32 banks of 4 bytes need.
  uint64_t bank_rounds = 0, ideal_bank_rounds = 0;
};

// The accesses of one simdgroup between two synchronizations of its lanes.
class SimdgroupAccesses {
 public:
  // Neighbouring accesses of a lane in one 16-byte block count as one: a GPU's
  // compiler loads a vector where clang loads its elements.
  void add(uint32_t lane,
           int region,
           uint64_t address,
           uint32_t size,
           bool write,
           int32_t code);

  // Matches each lane's n-th access at a place of the kernel with the n-th of
  // the other lanes there, adds the requests to counts[region] and clears them.
  void settle(std::vector<RequestCounts>& counts);

 private:
  struct Access {
    uint64_t address;
    uint32_t size;
    int32_t code;
    int16_t region;
    bool write;
  };
  std::array<std::vector<Access>, kLanes> lanes_;
};

}  // namespace simt
