// Memory that a thread keeps for its next call.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace nibble::cpu {

// Returns `count` floats. The memory grows to the largest count so far. A
// second call by the same thread returns the same memory.
inline float* thread_floats(size_t count) {
  struct Free {
    void operator()(float* p) const {
      ::operator delete[](p, std::align_val_t{64});
    }
  };
  thread_local std::unique_ptr<float[], Free> floats;
  thread_local size_t room = 0;
  if (count > room) {
    floats.reset();
    room = 0;
    floats.reset(static_cast<float*>(
        ::operator new[](count * sizeof(float), std::align_val_t{64})));
    room = count;
  }
  return floats.get();
}

}  // namespace nibble::cpu
