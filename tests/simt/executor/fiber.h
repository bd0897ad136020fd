// A stack to run a thread of a kernel on, and the switch between two of them.
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
  // `colour` moves the first frame, so that the hot lines of many stacks do
  // not all fall into the same set of the cache.
  void reset(void (*entry)(), size_t colour);

  bool guards(const void* address) const;  // has the stack overflowed to it?

  void* stack_pointer = nullptr;

 private:
  char* memory_ = nullptr;  // a guard page, then the stack
};

// Leaves the running stack, storing its pointer to *from, for `to`.
extern "C" void simt_switch(void** from, void* to);

}  // namespace simt
