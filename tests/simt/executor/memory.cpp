#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace simt {
namespace {

constexpr size_t kPage = 4096;
// Guards are wider than a row or a tile, so that a stray index ends in them.
constexpr size_t kGuard = 64 * kPage;
constexpr std::byte kSlack{0xa5};
constexpr std::byte kPoison{0xff};

constexpr size_t round_up(size_t value, size_t to) {
  return (value + to - 1) / to * to;
}

// Vectors in a Metal buffer are aligned. An alignment below this one is met
// exactly, so that a kernel never gets a larger one by chance.
constexpr size_t kVector = 16;

}  // namespace

GuardedMemory::GuardedMemory(std::string name, size_t size, size_t alignment)
    : name_(std::move(name)), size_(size) {
  // Start at an odd multiple of `alignment`.
  size_t odd = alignment < kVector ? alignment : 0;
  size_t used = round_up(size + odd, kVector);
  size_t accessible = round_up(std::max<size_t>(used, 1), kPage);
  mapped_ = accessible + 2 * kGuard;
  void* mapped = mmap(nullptr,
                      mapped_,
                      PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1,
                      0);
  if (mapped == MAP_FAILED) {
    throw std::bad_alloc();
  }
  pages_ = static_cast<std::byte*>(mapped);
  mprotect(pages_ + kGuard, accessible, PROT_READ | PROT_WRITE);
  data_ = pages_ + kGuard + accessible - used + odd;
  std::fill(pages_ + kGuard, pages_ + kGuard + accessible, kSlack);
}

GuardedMemory::~GuardedMemory() {
  if (pages_) {
    munmap(pages_, mapped_);
  }
}

GuardedMemory::GuardedMemory(GuardedMemory&& other) noexcept
    : name_(std::move(other.name_)),
      size_(other.size_),
      pages_(std::exchange(other.pages_, nullptr)),
      mapped_(other.mapped_),
      data_(other.data_) {}

void GuardedMemory::poison() {
  std::fill(data_, data_ + size_, kPoison);
}

void GuardedMemory::make_read_only() {
  mprotect(pages_ + kGuard, mapped_ - 2 * kGuard, PROT_READ);
}

bool GuardedMemory::owns(const void* address) const {
  return address >= pages_ && address < pages_ + mapped_;
}

std::string GuardedMemory::describe(const void* address) const {
  auto at = static_cast<const std::byte*>(address) - data_;
  return "byte " + std::to_string(at) + " of " + name_ + ", which has " +
         std::to_string(size_);
}

std::string GuardedMemory::damage() const {
  auto intact = [](std::byte b) { return b == kSlack; };
  const std::byte* first = pages_ + kGuard;
  const std::byte* last = pages_ + mapped_ - kGuard;
  const std::byte* end = data_ + size_;
  const std::byte* hit =
      std::find_if_not(first, static_cast<const std::byte*>(data_), intact);
  if (hit == data_) {
    hit = std::find_if_not(end, last, intact);
  }
  return hit == last ? "" : describe(hit);
}

}  // namespace simt
