// The facts about this machine that a plan depends on.
#pragma once

#include "csrc/core/cpu_plan.h"

namespace nibble::cpu {

// Throws as isa() and thread_count() do.
CpuProfile profile();

}  // namespace nibble::cpu
