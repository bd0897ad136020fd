// Turns a bad memory access of a kernel into a finding.
#pragma once

#include <csignal>
#include <functional>

#include "findings.h"

namespace simt {

// While an object lives, SIGSEGV, SIGBUS and SIGILL on a kernel's fiber call
// `explain(address, signal, is_write)`, and its finding stops the threadgroup.
class FaultHandler {
 public:
  using Explain = std::function<Finding(void* address, int signal, bool write)>;
  explicit FaultHandler(Explain explain);
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  struct sigaction segv_, bus_, ill_;
  stack_t stack_;
};

}  // namespace simt
