#include "csrc/cpu/floats.h"

#include <new>

#include "csrc/cpu/pages.h"

namespace nibble::cpu {
namespace {

constexpr size_t kVector = 64, kLargePage = size_t{2} << 20;
// Less than a quarter of a page is not worth one.
constexpr size_t kLarge = kLargePage / 4;

}  // namespace

Floats make_floats(size_t count) {
  size_t bytes = count * sizeof(float) + kVector;
  size_t page = bytes < kLarge ? kVector : kLargePage;
  bytes = (bytes + page - 1) / page * page;
  void* p = std::aligned_alloc(page, bytes);
  if (!p) throw std::bad_alloc();
  if (page == kLargePage) want_large_pages(p, bytes);
  return Floats(static_cast<float*>(p));
}

}  // namespace nibble::cpu
