// The functions that a kernel compiled with -fsanitize=thread calls at each
// access to memory that threads may share. The sanitizer's own runtime is not
// linked, because Metal's threads and barriers are not the host's.
#include <cstddef>
#include <cstring>

#include "monitor.h"
#include "runtime.h"

namespace {

inline void on_access(const void* address,
                      size_t size,
                      bool write,
                      const void* code) {
  if (simt::active_monitor) {
    simt::active_monitor->access(address, size, write, code);
  }
}

}  // namespace

// Returns the caller's place in the kernel.
#define SIMT_CALLER __builtin_return_address(0)

#define SIMT_TSAN_ACCESS(size)                                  \
  SIMT_EXPORT void __tsan_read##size(void* p) {                 \
    on_access(p, size, false, SIMT_CALLER);                     \
  }                                                             \
  SIMT_EXPORT void __tsan_write##size(void* p) {                \
    on_access(p, size, true, SIMT_CALLER);                      \
  }                                                             \
  SIMT_EXPORT void __tsan_unaligned_read##size(void* p) {       \
    on_access(p, size, false, SIMT_CALLER);                     \
  }                                                             \
  SIMT_EXPORT void __tsan_unaligned_write##size(void* p) {      \
    on_access(p, size, true, SIMT_CALLER);                      \
  }                                                             \
  SIMT_EXPORT void __tsan_read_write##size(void* p) {           \
    on_access(p, size, false, SIMT_CALLER);                     \
    on_access(p, size, true, SIMT_CALLER);                      \
  }                                                             \
  SIMT_EXPORT void __tsan_unaligned_read_write##size(void* p) { \
    on_access(p, size, false, SIMT_CALLER);                     \
    on_access(p, size, true, SIMT_CALLER);                      \
  }
SIMT_TSAN_ACCESS(1)
SIMT_TSAN_ACCESS(2)
SIMT_TSAN_ACCESS(4)
SIMT_TSAN_ACCESS(8)
SIMT_TSAN_ACCESS(16)

SIMT_EXPORT void __tsan_init() {}

SIMT_EXPORT void* __tsan_memcpy(void* to, const void* from, size_t size) {
  on_access(from, size, false, SIMT_CALLER);
  on_access(to, size, true, SIMT_CALLER);
  return std::memcpy(to, from, size);
}
SIMT_EXPORT void* __tsan_memmove(void* to, const void* from, size_t size) {
  on_access(from, size, false, SIMT_CALLER);
  on_access(to, size, true, SIMT_CALLER);
  return std::memmove(to, from, size);
}
SIMT_EXPORT void* __tsan_memset(void* to, int value, size_t size) {
  on_access(to, size, true, SIMT_CALLER);
  return std::memset(to, value, size);
}
