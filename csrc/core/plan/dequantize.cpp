// w_hat from a packed matrix.
#include <cassert>

#include "csrc/core/plan/cuda.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

std::optional<Launches> plan(const DequantizeProblem& p,
                             const DeviceProfile& device) {
  assert(p.rows >= 1 && p.K >= 1);
  if (device.api == Api::kCuda) {
    return plan_on_cuda(p);
  }
  if (!supported_by_gpu(p.format, p.K)) {
    return std::nullopt;
  }
  // One thread decodes each run of whole words.
  Elementwise runs{NIBBLE_DEQUANTIZE_THREADS, p.format.run_codes()};
  LaunchPlan launch = launch_of(p, Family::kDequantize, runs, {p.K, p.rows});
  bind_weights(launch, p.format);
  bind(launch, {Operand::kOut});
  launch.params = as_bytes(DequantizeParams{p.rows, p.K});
  return {{std::move(launch)}};
}

}  // namespace nibble
