#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <utility>

namespace simt {
namespace {

constexpr size_t kPage = 4096;
// Enough for kernels compiled without optimisation. Only touched pages use
// memory.
constexpr size_t kStack = 256 << 10;
constexpr size_t kColours = 64;
constexpr size_t kColourBytes = 192;  // three lines: two colours share none

}  // namespace

#if !defined(__x86_64__)
#error "the switch below is for x86-64 (System V)"
#endif

// Saves the registers that a call preserves, and the stack pointer.
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

Fiber::Fiber() {
  void* mapped = mmap(nullptr,
                      kPage + kStack,
                      PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1,
                      0);
  if (mapped == MAP_FAILED) {
    throw std::bad_alloc();
  }
  memory_ = static_cast<char*>(mapped);
  mprotect(memory_, kPage, PROT_NONE);
}

Fiber::~Fiber() {
  if (memory_) {
    munmap(memory_, kPage + kStack);
  }
}

Fiber::Fiber(Fiber&& other) noexcept
    : stack_pointer(other.stack_pointer),
      memory_(std::exchange(other.memory_, nullptr)) {}

void Fiber::reset(void (*entry)(), size_t colour) {
  char* top = memory_ + kPage + kStack - colour % kColours * kColourBytes;
  auto* frame = reinterpret_cast<uint64_t*>(top);
  *--frame = 0;  // the return address of `entry`, unused
  *--frame = reinterpret_cast<uint64_t>(entry);
  for (int preserved = 0; preserved < 6; ++preserved) {
    *--frame = 0;
  }
  stack_pointer = frame;
}

bool Fiber::guards(const void* address) const {
  return address >= memory_ && address < memory_ + kPage;
}

}  // namespace simt
