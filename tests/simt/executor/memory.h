// Memory with guards: an access outside it is found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace simt {

// `size` bytes that end at an inaccessible page, except for the rounding of
// their alignment. That slack, and the slack before them, has a pattern that is
// checked after the dispatch.
class GuardedMemory {
 public:
  GuardedMemory(std::string name, size_t size, size_t alignment);
  ~GuardedMemory();
  GuardedMemory(GuardedMemory&& other) noexcept;
  GuardedMemory(const GuardedMemory&) = delete;
  GuardedMemory& operator=(const GuardedMemory&) = delete;
  GuardedMemory& operator=(GuardedMemory&&) = delete;

  const std::string& name() const { return name_; }
  std::byte* data() const { return data_; }
  size_t size() const { return size_; }

  void poison();  // all bytes 0xff: NaN, or a huge index
  void make_read_only();

  // True if `address` lies in the pages of this memory or in its guards.
  bool owns(const void* address) const;
  // "byte 68 of x, which has 64"
  std::string describe(const void* address) const;
  // Describes a write outside; empty if there was none.
  std::string damage() const;

 private:
  std::string name_;
  size_t size_;
  std::byte* pages_ = nullptr;  // guard, accessible, guard
  size_t mapped_ = 0;
  std::byte* data_ = nullptr;
};

}  // namespace simt
