// Records the last write and the later reads of each shared byte, and the
// barriers between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "threadgroup.h"

namespace simt {

// A moment in a dispatch, counted in barriers.
struct Stamp {
  uint32_t threadgroup = 0;      // serial, from 1; 0: never
  uint32_t epoch = 0;            // barriers of the threadgroup so far
  uint32_t simdgroup_epoch = 0;  // barriers of the simdgroup so far
  uint16_t thread = 0;
  int32_t code = 0;  // place in the kernel

  uint32_t simdgroup() const { return thread / kLanes; }
  bool known() const { return threadgroup != 0; }
};

// The accesses to one block of memory.
class Shadow {
 public:
  // `across`: threadgroups share the block, as in device memory.
  Shadow(size_t bytes, bool across);

  struct Conflict {
    enum class Kind { kNone, kRace, kBetweenThreadgroups, kUninitialised };
    Kind kind = Kind::kNone;
    size_t offset = 0;
    Stamp other;
    bool other_wrote = false;
  };

  // Record an access of `size` bytes at `offset`, and return its first
  // conflict.
  Conflict read(size_t offset, size_t size, const Stamp& now);
  Conflict write(size_t offset, size_t size, const Stamp& now);

 private:
  struct Cell {
    Stamp written;
    // The last reader, the last other reader of its simdgroup, and the last
    // reader of another simdgroup. If any reader conflicts with the next write,
    // one of these three does.
    Stamp read, read_beside, read_elsewhere;
  };

  bool ordered(const Stamp& before, const Stamp& now) const;
  void refine(size_t offset, size_t size);
  Conflict::Kind kind(const Stamp& other, const Stamp& now) const;

  bool across_;
  size_t grain_ = 4;  // bytes a cell stands for
  std::vector<Cell> cells_;
};

}  // namespace simt
