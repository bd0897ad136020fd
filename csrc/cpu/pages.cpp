#include "csrc/cpu/pages.h"

#include <cstdint>
#include <fstream>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace nibble::cpu {
namespace {

#if defined(__linux__)
// Advises the system about the whole pages of a range. Advice may be refused:
// memory is then as it was.
void advise(void* begin, size_t bytes, size_t page, int advice) {
  auto first = (reinterpret_cast<std::uintptr_t>(begin) + page - 1) / page;
  auto end = (reinterpret_cast<std::uintptr_t>(begin) + bytes) / page;
  if (first < end) {
    madvise(
        reinterpret_cast<void*>(first * page), (end - first) * page, advice);
  }
}

// MADV_COLLAPSE, which older headers lack.
constexpr int kCollapse = 25;
// Larger ones, as some Arm systems have, would move more neighbours than range.
constexpr size_t kMostLargePage = size_t{2} << 20;

// The bytes of a large page; 0 if the system has none or only larger ones.
size_t large_page() {
  static const size_t bytes = [] {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");
    size_t found = 0;
    file >> found;
    return found <= kMostLargePage ? found : 0;
  }();
  return bytes;
}
#endif

}  // namespace

void want_large_pages([[maybe_unused]] void* begin,
                      [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  advise(begin, bytes, sysconf(_SC_PAGESIZE), MADV_HUGEPAGE);
#endif
}

void move_to_large_pages([[maybe_unused]] const void* begin,
                         [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  size_t page = large_page();
  if (page == 0 || bytes == 0) return;
  // Each by itself: those that other mappings reach into stay as they are.
  auto first = reinterpret_cast<std::uintptr_t>(begin) / page;
  auto last = (reinterpret_cast<std::uintptr_t>(begin) + bytes - 1) / page;
  for (auto i = first; i <= last; ++i) {
    madvise(reinterpret_cast<void*>(i * page), page, kCollapse);
  }
#endif
}

void discard([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  advise(begin, bytes, sysconf(_SC_PAGESIZE), MADV_DONTNEED);
#endif
}

}  // namespace nibble::cpu
