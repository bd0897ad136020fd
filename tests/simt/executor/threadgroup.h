// Runs the threads of one threadgroup, one fiber each, and synchronizes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "fiber.h"
#include "findings.h"
#include "runtime.h"

namespace simt {

constexpr uint32_t kLanes = 32;

enum class Op : uint8_t {
  kSimdgroupBarrier,
  kShuffle,
  kReduce,
  kMatrix,
  kThreadgroupBarrier,
  kFixedShuffle,
};

// A call in the kernel's text.
struct Site {
  const char* file = "";
  int line = 0;
  Op op = Op::kSimdgroupBarrier;

  bool operator==(const Site& other) const;
  std::string to_string() const;
};

class Monitor;

class Threadgroup {
 public:
  Threadgroup(const SimtDispatch& dispatch,
              const uint64_t* bindings,
              Counters& counters,
              Monitor* monitor);

  // Runs all threads of the threadgroup at `position` to their end, in an order
  // drawn from `seed`. Returns the finding that stopped them, if any.
  std::optional<Finding> run(const uint32_t position[3], uint64_t seed);

  // Called on a thread's fiber.
  const SimtThreadIds& current() const { return threads_[running_].ids; }
  bool is_running() const { return running_ != kNone; }
  void threadgroup_barrier(Site site, uint32_t flags);
  void simdgroup_barrier(Site site, uint32_t flags);
  const uint8_t* exchange(Site site, const void* value, uint32_t bytes);
  [[noreturn]] void stop(Finding finding);
  bool stack_overflowed_to(const void* address) const;

 private:
  static constexpr uint32_t kNone = ~0u;

  enum class State : uint8_t { kReady, kWaiting, kExited };

  struct Thread {
    SimtThreadIds ids;
    Fiber fiber;
    State state = State::kReady;
    Site site;
    uint32_t place = 0;  // in order_
  };

  struct Simdgroup {
    uint32_t first = 0;  // place of its lanes in order_
    uint32_t size = 0;
    uint32_t live = 0;     // lanes that have not returned
    uint32_t arrived = 0;  // lanes that wait at `site`
    uint32_t waiting_at_barrier = 0;
    Site site;
    uint32_t round = 0;
    // Two sets: lanes may still read one round while others write the next.
    alignas(16) uint8_t slots[2][kLanes][16];
  };

  static void thread_main();
  void start(const uint32_t position[3], uint64_t seed);
  void switch_to(uint32_t thread);
  void run_another();
  void exit_current();
  bool arrive(Site site);
  void release(Simdgroup& group);
  void fail_if_partial(const Simdgroup& group, const Site& site);
  [[noreturn]] void report_deadlock();
  [[noreturn]] void leave();

  const SimtDispatch& dispatch_;
  const uint64_t* bindings_;
  Counters& counters_;
  Monitor* monitor_;
  std::vector<Thread> threads_;
  std::vector<Simdgroup> simdgroups_;
  std::vector<uint32_t> order_;  // thread indices; a simdgroup's are adjacent
  uint32_t running_ = kNone;
  uint32_t exited_ = 0;
  uint32_t at_barrier_ = 0;
  Site barrier_;
  void* outside_ = nullptr;  // stack pointer of run()
  std::optional<Finding> stopped_;
};

// The running threadgroup, which the functions of runtime.h use.
extern Threadgroup* active_threadgroup;

}  // namespace simt
