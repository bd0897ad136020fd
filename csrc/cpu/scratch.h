// Memory that a thread keeps for its next call.
#pragma once

#include "csrc/cpu/floats.h"

namespace nibble::cpu {

// Returns `count` floats. The memory grows to the largest count so far. A
// second call by the same thread returns the same memory.
inline float* thread_floats(size_t count) {
  thread_local Floats floats;
  thread_local size_t room = 0;
  if (count > room) {
    floats.reset();
    room = 0;
    floats = make_floats(count);
    room = count;
  }
  return floats.get();
}

}  // namespace nibble::cpu
