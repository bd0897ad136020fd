// How the accesses of 32 lanes fall together into memory requests: how many
// cache lines a load of a simdgroup touches, how many banks its threadgroup
// accesses collide in. A model, said in docs/simt.md; no GPU was asked.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "threadgroup.h"

namespace simt {

// Sums over requests. "Ideal": the same bytes, side by side and aligned.
struct RequestCounts {
  uint64_t requests = 0;
  // What lanes of one request share counts once.
  uint64_t bytes = 0;
  uint64_t lines_64 = 0, ideal_lines_64 = 0;
  uint64_t lines_128 = 0, ideal_lines_128 = 0;
  // Rounds that 32 banks of 4 bytes need.
  uint64_t bank_rounds = 0, ideal_bank_rounds = 0;
};

// The accesses of one simdgroup between two places where its lanes meet.
class SimdgroupAccesses {
 public:
  // Neighbouring accesses of a lane that fall into one 16-byte block count as
  // one: a GPU's compiler loads a vector where this one loads its elements.
  void add(uint32_t lane,
           int region,
           uint64_t address,
           uint32_t size,
           bool write,
           int32_t code);

  // Matches the lanes' accesses, the n-th at a place of the kernel with the
  // others' n-th there, adds them to counts[region] and forgets them.
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
