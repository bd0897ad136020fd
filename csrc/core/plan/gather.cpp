// Products whose rows choose their weights by index.
#include <cassert>

#include "csrc/core/plan/cuda.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

template <typename Shape>
LaunchPlan gather_launch(const GatherProblem& p,
                         Family family,
                         const Shape& shape,
                         const Extent& y) {
  LaunchPlan launch = launch_of(p, family, shape, y);
  bind_weights(launch, p.format);
  bind(
      launch,
      {Operand::kX, Operand::kLhsIndices, Operand::kRhsIndices, Operand::kOut});
  launch.params = as_bytes(params_of(p));
  return launch;
}

template <typename Shape>
LaunchPlan gather_launch(const GatherProblem& p,
                         Family family,
                         const Shape& shape) {
  return gather_launch(p, family, shape, {p.columns(), p.M, p.B});
}

// Tiles of products of one row each, which all choose one expert. kernels/
// gather_qmm.h: a threadgroup for the first tile of each expert, and one for
// each block of products but the first.
template <typename Shape>
LaunchPlan sorted_launch(const GatherProblem& p,
                         Family family,
                         const Shape& tile) {
  return gather_launch(
      p, family, tile, {p.columns(), p.B + (p.experts - 1) * tile.BM});
}

LaunchPlan plan_not_transposed(const GatherProblem& p, bool sorted_tiles) {
  if (sorted_tiles) {
    return sorted_launch(p, Family::kGatherSortedQmmN, not_transposed_tile(p));
  }
  if (p.M >= kFirstNotTransposedRow && !p.batch_invariant) {
    return gather_launch(p, Family::kGatherQmmN, not_transposed_tile(p));
  }
  return gather_launch(p, Family::kGatherQvm, QvmColumns{p.format});
}

LaunchPlan plan_transposed(const GatherProblem& p, bool sorted_tiles) {
  if (sorted_tiles) {
    return sorted_launch(p, Family::kGatherQmm, gather_tile(p.B / p.experts));
  }
  // All forms of gather_qmm_skinny add up a row in the same order.
  if (p.M > 1 || p.batch_invariant) {
    return gather_launch(p, Family::kGatherQmmSkinny, skinny_tile(p.M));
  }
  return gather_launch(p, Family::kGatherQmv, QmvRows{});
}

}  // namespace

std::optional<Launches> plan(const GatherProblem& p,
                             const DeviceProfile& device) {
  assert(p.B >= 1 && p.M >= 1 && p.N >= 1 && p.K >= 1 && p.experts >= 1);
  if (device.api == Api::kCuda) {
    return plan_on_cuda(p);
  }
  if (!supported_by_gpu(p.format, p.K)) {
    return std::nullopt;
  }
  bool sorted_tiles = takes_sorted_tiles(p);
  return {{p.transpose ? plan_transposed(p, sorted_tiles)
                       : plan_not_transposed(p, sorted_tiles)}};
}

}  // namespace nibble
