// The first half of a gated MLP: gate and up in one launch, for one row.
#include <cassert>

#include "csrc/core/plan/cuda.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

// Binds gate and up, then the activations.
template <typename Problem>
LaunchPlan swiglu_launch(const Problem& p, Family family, const Extent& y) {
  LaunchPlan launch = launch_of(p, family, QmvRows{}, y);
  bind_gate_and_up(launch, p.format);
  bind(launch, {Operand::kX});
  launch.params = as_bytes(params_of(p));
  return launch;
}

}  // namespace

std::optional<Launches> plan_swiglu(const MatmulProblem& problem,
                                    const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.M >= 1 && p.N >= 1 && p.K >= 1 && p.batch.size >= 1);
  if (device.api == Api::kCuda) {
    return plan_swiglu_on_cuda(p);
  }
  if (!supported_by_gpu(p.format, p.K) || !p.transpose || p.batch_invariant ||
      p.M > 1) {
    return std::nullopt;
  }
  LaunchPlan launch =
      swiglu_launch(p, Family::kSwiglu, {p.N, p.M, p.batch.size});
  bind(launch, {Operand::kOut});
  return {{std::move(launch)}};
}

std::optional<Launches> plan_swiglu(const GatherProblem& p,
                                    const DeviceProfile& device) {
  if (device.api == Api::kCuda) {
    return plan_swiglu_on_cuda(p);
  }
  auto product = plan(p, device);
  if (!product ||
      product->front().kernel != kernel_name({p, Family::kGatherQmv})) {
    return std::nullopt;
  }
  LaunchPlan launch = swiglu_launch(p, Family::kGatherSwiglu, {p.N, p.M, p.B});
  bind(launch, {Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  return {{std::move(launch)}};
}

}  // namespace nibble
