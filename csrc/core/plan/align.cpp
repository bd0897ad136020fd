// The copy of an operand that kernels cannot read in place.
#include "csrc/core/kernel_source.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

std::optional<LaunchPlan> plan_align(int64_t offset, size_t bytes) {
  if (offset % NIBBLE_ALIGNMENT == 0) {
    return std::nullopt;
  }
  // Elements of every type are whole pairs of bytes.
  uint64_t pairs = bytes / 2;
  Elementwise shape{NIBBLE_ALIGN_THREADS};
  LaunchPlan launch;
  launch.kernel = kAlignKernel;
  launch.threadgroups = shape.grid({static_cast<int64_t>(pairs)});
  launch.threads = shape.threads();
  bind(launch, {Operand::kX, Operand::kOut});
  launch.params = as_bytes(AlignParams{pairs});
  return launch;
}

}  // namespace nibble
