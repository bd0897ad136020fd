// Watches the memory accesses of an instrumented kernel: finds races and reads
// of uninitialised memory, and counts requests.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "findings.h"
#include "memory.h"
#include "requests.h"
#include "shadow.h"
#include "threadgroup.h"

namespace simt {

class Monitor {
 public:
  // `origin`: an address in the kernel's library; places in it are offsets from
  // there. `forgive`: the flag redundant_writes of SimtFlags.
  Monitor(const void* origin, size_t simdgroups, bool forgive);
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  void watch_buffer(const GuardedMemory& memory, bool writable);
  void watch_threadgroup(const GuardedMemory& memory);

  void begin_threadgroup(const uint32_t position[3]);
  void end_threadgroup();
  void threadgroup_barrier(uint32_t flags);
  void simdgroup_barrier(uint32_t simdgroup, uint32_t flags);
  // The running thread begins to wait: its last write is done.
  void thread_pauses() { judge_last_write(); }
  // The lanes of a simdgroup have synchronized.
  void lanes_met(uint32_t simdgroup);

  // An access by the running thread; `code` is the address after the call.
  void access(const void* address, size_t size, bool write, const void* code);

  const std::vector<Finding>& findings() const { return findings_; }
  std::string to_json() const;

 private:
  struct Region {
    const GuardedMemory* memory;
    bool device;
    // Inputs are write-protected and have no shadow.
    std::vector<Shadow> shadow;  // one or none
    std::vector<bool> was_read, was_written;
    uint64_t bytes_read = 0, bytes_written = 0;
  };

  void watch(const GuardedMemory& memory, bool device, bool shadowed);
  Region* region_at(const void* address);
  void report(const Region& region,
              const Shadow::Conflict& conflict,
              bool write,
              const Stamp& now);
  void out_of_bounds(const Region& region,
                     const void* address,
                     bool write,
                     const void* code);
  void judge_last_write();
  void add(Finding finding);
  void settle_all();

  // A write that conflicts with another write. The callback comes before the
  // write, so its value is compared later.
  struct ConflictingWrite {
    const Region* region;
    Shadow::Conflict conflict;
    Stamp now;
    const std::byte* address;
    std::vector<std::byte> before;
  };

  const char* origin_;
  bool forgive_redundant_;
  std::vector<ConflictingWrite> last_write_;  // one or none
  std::vector<Region> regions_;
  std::vector<RequestCounts> counts_;  // of regions_
  std::vector<SimdgroupAccesses> accesses_;
  size_t last_ = 0;  // region of the last access
  uint32_t position_[3] = {0, 0, 0};
  uint32_t threadgroup_ = 0;
  // Number of barriers so far that order device memory and threadgroup memory.
  uint32_t epoch_[2] = {1, 1};
  std::vector<uint32_t> simdgroup_epoch_[2];
  std::vector<Finding> findings_;
};

// The monitor that the compiler's callbacks report to; null if there is none.
extern Monitor* active_monitor;

}  // namespace simt
