#include "csrc/mlx/packed_memory.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "csrc/cpu/packed.h"
#include "csrc/cpu/pages.h"
#include "mlx/allocator.h"

namespace nibble::repack {
namespace {

// The system gives an allocation of this size pages of its own, which nobody
// has written. More would be allocated for longer than it is needed when the
// matrices of a chunk are freed one by one.
constexpr size_t kChunk = size_t{64} << 20;

size_t aligned(size_t bytes) {
  constexpr size_t kUnit = cpu::Packed::kAlignment;
  return (bytes + kUnit - 1) / kUnit * kUnit;
}

// An array without memory. Its shape does not matter: only views are read.
mx::array empty() {
  return mx::array({1}, mx::uint8, nullptr, {});
}

// mlx 0.32.3 takes the two as they are, 0.32.4 as one object.
template <typename Array, typename Deleter>
void set_memory(Array& a, mx::allocator::Buffer memory, Deleter give_back) {
  if constexpr (requires { a.set_data({memory, give_back}); }) {
    a.set_data({memory, std::move(give_back)});
  } else {
    a.set_data(memory, std::move(give_back));
  }
}

}  // namespace

std::pair<mx::array, size_t> PackedMemory::take(size_t bytes) {
  std::lock_guard lock(mutex_);
  bytes = aligned(bytes);
  if (!chunk_ || used_ + bytes > size_) {
    size_ = std::max(bytes, std::min(kChunk, left_)) + cpu::Packed::kAlignment;
    chunk_ = empty();
    chunk_->set_data(mx::allocator::malloc(size_));
    auto* begin = chunk_->data<uint8_t>();
    cpu::want_large_pages(begin, size_);
    used_ = -reinterpret_cast<std::uintptr_t>(begin) % cpu::Packed::kAlignment;
  }
  left_ -= std::min(left_, bytes);
  size_t offset = used_;
  used_ += bytes;
  auto give_back = [chunk = *chunk_, offset, bytes](mx::allocator::Buffer) {
    mx::array memory = chunk;
    cpu::discard(memory.data<uint8_t>() + offset, bytes);
  };
  mx::array part = empty();
  set_memory(part, chunk_->buffer(), give_back);
  return {part, offset};
}

}  // namespace nibble::repack
