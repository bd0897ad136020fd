// Problem -> LaunchPlan. The only place that holds a heuristic.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// The launches that compute `problem` on `device`, in order; nullopt if no
// kernel of ours does, so that MLX's own op is to be used. A problem's choice
// is followed if it names a candidate's first kernel. Needs M, N, K >= 1.
std::optional<std::vector<LaunchPlan>> plan(const MatmulProblem& problem,
                                            const DeviceProfile& device);

// Every plan for `problem` that may be the fastest on some device, the one that
// plan() takes first: what a tuner times. Empty where plan() has none.
std::vector<std::vector<LaunchPlan>> candidates(const MatmulProblem& problem,
                                                const DeviceProfile& device);

// The launches of a product whose rows choose their weights.
std::optional<std::vector<LaunchPlan>> plan(const GatherProblem& problem,
                                            const DeviceProfile& device);

// The names of all kernels that a plan for such a problem may hold, whatever
// its numbers of rows, batches and products.
std::vector<std::string> kernels_of_any_shape(const MatmulProblem& problem);
std::vector<std::string> kernels_of_any_shape(const GatherProblem& problem);

// The launch of y = silu(x @ gate^T) * (x @ up^T), gate and up of one shape
// and format; nullopt if it is better done as two products.
std::optional<std::vector<LaunchPlan>> plan_swiglu(
    const MatmulProblem& problem);
std::optional<std::vector<LaunchPlan>> plan_swiglu(
    const GatherProblem& problem);

// The launch of two or three products of one x, transposed and without a
// residual, that computes what those of plan() would, bit for bit; nullopt if
// they do not go together or are better launched one by one.
std::optional<std::vector<LaunchPlan>> plan_joint(
    const std::vector<MatmulProblem>& products, const DeviceProfile& device);

std::optional<std::vector<LaunchPlan>> plan(const DequantizeProblem& problem,
                                            const DeviceProfile& device);
std::vector<std::string> kernels_of_any_shape(const DequantizeProblem& problem);

// The launch that copies an array of `bytes` bytes from Operand::kX to
// Operand::kOut, because kernels cannot read it at the byte `offset` of its
// buffer, where it begins; nullopt if they can.
std::optional<LaunchPlan> plan_align(int64_t offset, size_t bytes);

}  // namespace nibble
