// Problem -> LaunchPlan. The files of plan/, one for each kind of problem, are
// the only places with a heuristic for GPUs.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/families.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"

namespace nibble {

// The launches that compute `problem` on `device`, in order; nullopt if no
// kernel of ours does, so that MLX's own operation is used. Follows a problem's
// choice if it names a candidate's first kernel. Needs M, N, K >= 1.
std::optional<std::vector<LaunchPlan>> plan(const MatmulProblem& problem,
                                            const DeviceProfile& device);

// Every plan for `problem` that may be the fastest on some device, plan()'s own
// choice first. A tuner times them. Empty if plan() returns nullopt.
std::vector<std::vector<LaunchPlan>> candidates(const MatmulProblem& problem,
                                                const DeviceProfile& device);

// The launches of a product whose rows choose their weights.
std::optional<std::vector<LaunchPlan>> plan(const GatherProblem& problem,
                                            const DeviceProfile& device);

// The launch of y = silu(x @ gate^T) * (x @ up^T), gate and up of one shape
// and format; nullopt if two products are better.
std::optional<std::vector<LaunchPlan>> plan_swiglu(const MatmulProblem& problem,
                                                   const DeviceProfile& device);
std::optional<std::vector<LaunchPlan>> plan_swiglu(const GatherProblem& problem,
                                                   const DeviceProfile& device);

// The launch of two or three products of one x, transposed and without a
// residual. It computes the same bits as the launches of plan(); nullopt if the
// products do not go together or are better launched one by one.
std::optional<std::vector<LaunchPlan>> plan_joint(
    const std::vector<MatmulProblem>& products, const DeviceProfile& device);

// The launch of the gradients [2, .., N, K / group_size] of the scales and the
// biases of a product, from x and the gradient dy of its result; nullopt if no
// kernel of ours computes it. The product may have no rows.
std::optional<std::vector<LaunchPlan>> plan_gradient(
    const MatmulProblem& product, const DeviceProfile& device);
std::optional<std::vector<LaunchPlan>> plan_gradient(
    const GatherProblem& product, const DeviceProfile& device);

// True if a dense product and its reduction to groups are expected to be
// faster: many rows on neural accelerators.
bool dense_gradient_is_faster(const MatmulProblem& product,
                              const DeviceProfile& device);
bool dense_gradient_is_faster(const GatherProblem& product,
                              const DeviceProfile& device);

std::optional<std::vector<LaunchPlan>> plan(const DequantizeProblem& problem,
                                            const DeviceProfile& device);

// True if MLX's own operation is expected to compute this faster than our
// kernels: on neural accelerators, or by the predicted cost of its tiles
// (planner.md). Not part of plan(): a graph that is built for our kernels is
// run by them. A tuned choice overrules this.
bool mlx_is_faster(const MatmulProblem& problem, const DeviceProfile& device);
bool mlx_is_faster(const GatherProblem& problem, const DeviceProfile& device);
bool mlx_is_faster(const DequantizeProblem& problem,
                   const DeviceProfile& device);

// True if a dense product with dequantized weights is faster than any product
// with packed ones, or the only right one, on CUDA: for many rows, and where we
// have no kernel and MLX has none or a wrong one. `plain`: activations are a
// matrix, and no function transformation is at work. The weights are rounded to
// the type of the activations, as in MLX's own kernel.
bool dense_is_better(const MatmulProblem& problem,
                     const DeviceProfile& device,
                     bool plain = true);
bool dense_is_better(const GatherProblem& problem,
                     const DeviceProfile& device,
                     bool plain = true);

// The columns of w that MLX's own operation takes: K, or more on CUDA, where
// its kernels need whole blocks. Columns of zeros change no product.
int columns_for_mlx(const MatmulProblem& problem, const DeviceProfile& device);

// mlx_is_faster() for a traced graph: true if it is for some number of rows and
// products.
bool mlx_may_be_faster(MatmulProblem problem, const DeviceProfile& device);
bool mlx_may_be_faster(GatherProblem problem, const DeviceProfile& device);
bool mlx_may_be_faster(const DequantizeProblem& problem,
                       const DeviceProfile& device);

// The names of all kernels of `api` that `planner` may use for such a problem,
// for any numbers of rows, columns, batches and products.
std::vector<std::string> kernels_of_any_shape(
    const MatmulProblem& problem,
    Api api = Api::kMetal,
    Planner planner = Planner::kMatmul);
std::vector<std::string> kernels_of_any_shape(
    const GatherProblem& problem,
    Api api = Api::kMetal,
    Planner planner = Planner::kGather);
std::vector<std::string> kernels_of_any_shape(const DequantizeProblem& problem,
                                              Api api = Api::kMetal);

// Where the elements of an array are.
struct Layout {
  std::span<const int> shape;        // without a 0
  std::span<const int64_t> strides;  // in elements
  int64_t offset;                    // of the first, in bytes of its buffer
  size_t itemsize;
};

// The launch of `api` that copies an array from Operand::kX to Operand::kOut,
// row by row, because kernels cannot read it in place: it has gaps, or it
// begins at an address that is not aligned. nullopt if they can. Needs fewer
// than NIBBLE_CONTIGUOUS_DIMS dimensions.
std::optional<LaunchPlan> plan_contiguous(const Layout& from,
                                          Api api = Api::kMetal);

}  // namespace nibble
