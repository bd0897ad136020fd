// Memory of packed matrices: many share one allocation, so that they lie in
// large pages.
#pragma once

#include <cstddef>
#include <mutex>
#include <optional>
#include <utility>

#include "mlx/array.h"

namespace nibble::repack {

namespace mx = mlx::core;

// Memory for matrices of `bytes` in all, allocated in chunks.
class PackedMemory {
 public:
  explicit PackedMemory(size_t bytes) : left_(bytes) {}

  // Returns an array and the byte in it from which on `bytes` are the caller's,
  // aligned as cpu::Packed needs. The array owns only these: when its last view
  // is gone, they are given back to the system.
  std::pair<mx::array, size_t> take(size_t bytes);

 private:
  std::mutex mutex_;
  std::optional<mx::array> chunk_;
  size_t size_ = 0, used_ = 0;  // bytes of the chunk
  size_t left_;                 // bytes that matrices will still ask for
};

}  // namespace nibble::repack
