// w_hat from a packed matrix.
#include <cassert>

#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

std::optional<Launches> plan(const DequantizeProblem& p, const DeviceProfile&) {
  assert(p.rows >= 1 && p.K >= 1);
  if (!supported_by_metal(p.format, p.K)) {
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
