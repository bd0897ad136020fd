#include "csrc/cpu/pages.h"

#include <cstdint>

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
#endif

}  // namespace

void want_large_pages([[maybe_unused]] void* begin,
                      [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  advise(begin, bytes, sysconf(_SC_PAGESIZE), MADV_HUGEPAGE);
#endif
}

void discard([[maybe_unused]] void* begin, [[maybe_unused]] size_t bytes) {
#if defined(__linux__)
  advise(begin, bytes, sysconf(_SC_PAGESIZE), MADV_DONTNEED);
#endif
}

}  // namespace nibble::cpu
