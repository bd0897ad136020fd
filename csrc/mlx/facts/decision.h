// MLX's operation or ours: the one place that decides, when a graph is built.
//
// On a GPU a product is ours if its kernels are right there (self_check.h) and
// its table says that MLX's operation is not faster. A complete table leaves
// all other products to MLX; without one, being right is enough.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/plans.h"
#include "mlx/device.h"

namespace nibble::decision {

namespace mx = mlx::core;

// True if our kernels compute every product on `device`: no table may leave one
// to MLX.
inline bool always_ours(const ops::MatmulOptions& options,
                        const mx::Device& device) {
  return device == mx::Device::cpu && options.tuning == 0;
}

// True if our kernels compute this on `device`. A traced graph may be run with
// other shapes than it was built with (mx.compile(shapeless=True)). So all
// kernels of any shape must be right, and no number of rows may be MLX's:
// inside an evaluation it is too late to ask. The choice of a MatmulProblem has
// been consulted.
bool ours(const MatmulProblem& problem,
          const ops::MatmulOptions& options,
          bool traced,
          const mx::Device& device);
bool ours(const GatherProblem& problem,
          const ops::MatmulOptions& options,
          bool traced,
          const mx::Device& device);
bool ours(const DequantizeProblem& problem,
          const ops::MatmulOptions& options,
          const mx::Device& device);

// True if our kernel computes the gradients of the scales and biases of this
// product on `device`.
bool gradient_is_ours(const MatmulProblem& product, const mx::Device& device);
bool gradient_is_ours(const GatherProblem& product, const mx::Device& device);

// planner.h's dense_is_better() on this machine.
bool dense(const MatmulProblem& problem,
           const mx::Device& device,
           bool plain = true);
bool dense(const GatherProblem& problem,
           const mx::Device& device,
           bool plain = true);

// True if MLX's kernels on `device` read every matrix as if it had no gaps.
bool mlx_misreads_views(const mx::Device& device);

// planner.h's function on this machine.
int columns_for_mlx(const MatmulProblem& problem, const mx::Device& device);

// True if these launches may replace several products that are ours. With a
// complete table they are not tried now, for a token waits.
bool joins(const plans::Plan& launches, const ops::MatmulOptions& options);

}  // namespace nibble::decision
