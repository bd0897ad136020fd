// Helpers that the planner's files share: they fill in a LaunchPlan.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstring>
#include <initializer_list>

#include "csrc/core/families.h"
#include "csrc/core/kernel_name.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/tiles.h"

namespace nibble {

using Launches = std::vector<LaunchPlan>;

template <typename Params>
std::vector<std::byte> as_bytes(const Params& params) {
  std::vector<std::byte> bytes(sizeof(Params));
  std::memcpy(bytes.data(), &params, sizeof(Params));
  return bytes;
}

// `p` must come from merge_rows().
inline MatmulParams params_of(const MatmulProblem& p) {
  assert(p.batch.repeat == 1);
  int epilogue = (p.epilogue.bias ? NIBBLE_BIAS : 0) |
                 (p.epilogue.residual ? NIBBLE_RESIDUAL : 0);
  return {p.M, p.N, p.K, p.batch.count, epilogue};
}

inline GatherParams params_of(const GatherProblem& p) {
  return {p.M, p.N, p.K, p.B, p.experts};
}

inline void bind(LaunchPlan& launch, std::initializer_list<Operand> operands) {
  launch.buffers.insert(launch.buffers.end(), operands);
}

// The arrays of one packed matrix.
struct WeightOperands {
  Operand words, scales, biases;
};

inline constexpr WeightOperands kWeights{
    Operand::kWeight, Operand::kScales, Operand::kBiases};

// Binds the arrays of a matrix of this format. Kernels take three arrays for
// every format and do not read those that it lacks: `unread` is bound there.
inline void bind_weights(LaunchPlan& launch,
                         const QuantFormat& format,
                         const WeightOperands& w = kWeights,
                         Operand unread = Operand::kScales) {
  bind(launch, {w.words, w.scales, format.has_biases() ? w.biases : unread});
}

// Binds the arrays of gate under the ordinary names, then those of up.
inline void bind_gate_and_up(LaunchPlan& launch, const QuantFormat& format) {
  bind_weights(launch, format);
  bind_weights(launch,
               format,
               {Operand::kUpWeight, Operand::kUpScales, Operand::kUpBiases},
               Operand::kUpScales);
}

// Returns a launch of the kernel of `family` in threadgroups of this shape for
// a result `y`, without buffers and parameters. The only place that sets the
// grid, the threads and the threadgroup memory.
template <typename Problem, typename Shape>
LaunchPlan launch_of(const Problem& p,
                     Family family,
                     const Shape& shape,
                     const Extent& y) {
  LaunchPlan launch;
  launch.kernel = kernel_name({p, family, shape.shape()});
  launch.threadgroups = shape.grid(y);
  launch.threads = shape.threads();
  launch.threadgroup_bytes = shape.threadgroup_bytes(p);
  if (!row_of(family).entry.empty()) {
    // The shared entries always declare threadgroup memory.
    launch.threadgroup_bytes = std::max<uint32_t>(
        launch.threadgroup_bytes, NIBBLE_LEAST_THREADGROUP_BYTES);
  }
  return launch;
}

}  // namespace nibble
