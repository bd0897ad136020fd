// Products that MLX computes on the neural accelerators of a GPU's cores (M5).
//
// MLX 0.32.4 takes them for tiles whose K is a multiple of 64, and whose N is
// too if w is not transposed; for float32 only if TF32 is allowed. Its limits
// of rows depend on N and K, from 13 to 65. Ours is one number: up to 32 rows,
// w is read once by our kernels.
#include <algorithm>
#include <limits>

#include "csrc/core/plan/cost.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

constexpr int kNeuralColumns = 64;
constexpr int kManyRows = std::numeric_limits<int>::max() / 2;
// Rows of each class whose kernels are tiles.
constexpr int kSomeRows[] = {17, 32, 33, 64, 96, 128, 512, kManyRows};
// Rows of an expert, few and many for its tiles.
constexpr int kSomeExpertRows[] = {kSortedRowsAnExpert, 16, 64, 256};

bool has_neural_kernel(const Product& p, const DeviceProfile& device) {
  return device.neural && (p.dtype != Dtype::kFloat32 || device.tf32) &&
         p.K % kNeuralColumns == 0 &&
         (p.transpose || p.N % kNeuralColumns == 0) && !p.batch_invariant;
}

}  // namespace

bool mlx_is_faster(const MatmulProblem& problem, const DeviceProfile& device) {
  if (!problem.choice.empty()) {
    return false;
  }
  if (device.api == Api::kCuda) {
    return dense_is_better(problem, device);
  }
  MatmulProblem p = merge_rows(problem);
  return (has_neural_kernel(p, device) && p.M > kLastSkinnyRow) ||
         mlx_tiles_are_faster(p, device);
}

bool mlx_is_faster(const GatherProblem& p, const DeviceProfile& device) {
  if (device.api == Api::kCuda) {
    return dense_is_better(p, device);
  }
  return (has_neural_kernel(p, device) &&
          (p.M > kLastSkinnyRow || takes_sorted_tiles(p))) ||
         mlx_tiles_are_faster(p, device);
}

bool mlx_is_faster(const DequantizeProblem&, const DeviceProfile&) {
  return false;
}

bool mlx_may_be_faster(MatmulProblem problem, const DeviceProfile& device) {
  if (device.api == Api::kCuda) {
    // Any number of rows has a kernel, and few graphs are run with another.
    return mlx_is_faster(problem, device);
  }
  problem.batch = {};
  return std::ranges::any_of(kSomeRows, [&](int rows) {
    problem.M = rows;
    return mlx_is_faster(problem, device);
  });
}

bool mlx_may_be_faster(GatherProblem problem, const DeviceProfile& device) {
  if (mlx_is_faster(problem, device)) {
    return true;
  }
  if (device.api == Api::kCuda) {
    return false;
  }
  GatherProblem many = problem;
  many.M = kManyRows;
  problem.M = 1;
  return mlx_is_faster(many, device) ||
         std::ranges::any_of(kSomeExpertRows, [&](int rows) {
           problem.B = rows * problem.experts;
           return mlx_is_faster(problem, device);
         });
}

bool mlx_may_be_faster(const DequantizeProblem&, const DeviceProfile&) {
  return false;
}

}  // namespace nibble
