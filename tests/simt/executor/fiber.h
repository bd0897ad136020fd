// A stack for a thread of a kernel, and the switch between two stacks.
#pragma once

#include <cstddef>

namespace simt {

class Fiber {
 public:
  Fiber();
  ~Fiber();
  Fiber(Fiber&& other) noexcept;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  Fiber& operator=(Fiber&&) = delete;

  // Makes the next switch to this fiber call `entry`, which must not return.
  // `colour` moves the first frame, so that the hot lines of many stacks fall
  // into different sets of the cache.
  void reset(void (*entry)(), size_t colour);

  bool guards(const void* address) const;  // true after an overflow to it

  void* stack_pointer = nullptr;

 private:
  char* memory_ = nullptr;  // a guard page, then the stack
};

// Switches from the running stack, whose pointer it stores in *from, to `to`.
extern "C" void simt_switch(void** from, void* to);

}  // namespace simt
