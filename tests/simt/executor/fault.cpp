#include "fault.h"

#include <ucontext.h>

#include <cstdint>
#include <vector>

#include "threadgroup.h"

namespace simt {
namespace {

struct Fault {
  int signal;
  void* address;
  void* code;
  bool write;
} fault;

FaultHandler::Explain* explain_fault = nullptr;

// Runs on the faulting fiber, below its stack frames.
void after_fault() {
  Finding finding = (*explain_fault)(fault.address, fault.signal, fault.write);
  finding.code.push_back(fault.code);
  active_threadgroup->stop(finding);
}

alignas(16) char landing[1 << 16];

void on_signal(int signal, siginfo_t* info, void* context) {
  if (!active_threadgroup || !active_threadgroup->is_running()) {
    // Not a kernel's fault: repeat it under the default action.
    ::signal(signal, SIG_DFL);
    return;
  }
  greg_t* registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  constexpr greg_t kWriteBit = 2;  // in the page fault's error code
  fault = {signal,
           info->si_addr,
           reinterpret_cast<void*>(registers[REG_RIP]),
           (registers[REG_ERR] & kWriteBit) != 0};
  // Return from the handler into after_fault() on another stack, because the
  // fiber's stack may have overflowed.
  auto top = reinterpret_cast<uintptr_t>(landing + sizeof landing) - 8;
  registers[REG_RSP] = static_cast<greg_t>(top);
  registers[REG_RIP] = reinterpret_cast<greg_t>(&after_fault);
}

}  // namespace

FaultHandler::FaultHandler(Explain explain) {
  explain_fault = new Explain(std::move(explain));
  static std::vector<char> memory(1 << 16);
  stack_t stack{};
  stack.ss_sp = memory.data();
  stack.ss_size = memory.size();
  sigaltstack(&stack, &stack_);
  struct sigaction action{};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &segv_);
  sigaction(SIGBUS, &action, &bus_);
  sigaction(SIGILL, &action, &ill_);
}

FaultHandler::~FaultHandler() {
  sigaction(SIGSEGV, &segv_, nullptr);
  sigaction(SIGBUS, &bus_, nullptr);
  sigaction(SIGILL, &ill_, nullptr);
  sigaltstack(&stack_, nullptr);
  delete explain_fault;
  explain_fault = nullptr;
}

}  // namespace simt
