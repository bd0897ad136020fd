// The gradients of scales and biases, and the choice between our kernel and a
// dense product.
#include <cassert>

#include "csrc/core/plan/cost.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

// The dense way on neural accelerators: MLX multiplies in float32, which may
// become TF32. Numbers of 16 bits lose nothing by that. Others have reported 3
// to 5 times our expected speed for its products there (planner.md).
constexpr double kNeuralSpeed = 4;

// Its other operations: d is written once and read twice, codes and their
// products with d are written and read once. Bytes for each element of d.
constexpr double kDenseBytes = 7 * sizeof(float);
// Casts of x and dy, the product, codes, their product with d, and two sums.
constexpr double kDenseLaunches = 7;

bool is_planned(const Product& p, const DeviceProfile& device) {
  return device.api == Api::kMetal && p.format.info().stores_biases &&
         supported_by_gpu(p.format, p.K);
}

LaunchPlan gradient_launch(const Product& p, Family family, int matrices) {
  GradientSquares squares{p.format.group_size};
  return launch_of(gradient_types(p), family, squares, {p.K, p.N, matrices});
}

// Returns the cycles of the kernel for `rows` rows of x that meet each matrix.
double gradient_cycles(const Product& p,
                       int matrices,
                       double rows,
                       uint32_t cores) {
  GradientSquares squares{p.format.group_size};
  int side = NIBBLE_GRADIENT_SIDE;
  return launch_cycles(squares.grid({p.K, p.N, matrices}).volume(),
                       cores,
                       NIBBLE_GRADIENT_SIMDGROUPS * side * side,
                       static_cast<int>(rows),
                       kGradientCost);
}

// The dense product is assumed to be as good as the kernel, but on other units.
// `dense_rows` is the number of rows that it multiplies for each matrix.
bool dense_is_faster(const Product& p,
                     int matrices,
                     double rows,
                     double dense_rows,
                     const DeviceProfile& device) {
  if (!device.neural || !device.tf32 || p.dtype == Dtype::kFloat32 ||
      p.batch_invariant) {
    return false;
  }
  uint32_t all = cores(device);
  double elements = static_cast<double>(matrices) * p.N * p.K;
  double bytes =
      elements * kDenseBytes + 6 * matrices * dense_rows * (double(p.N) + p.K);
  double dense =
      kDenseLaunches * kLaunchCycles + bytes / (kBytesPerCycle * all) +
      elements / 1024 * dense_rows * kProductCycles / (kNeuralSpeed * all);
  return dense < gradient_cycles(p, matrices, rows, all);
}

}  // namespace

std::optional<Launches> plan_gradient(const MatmulProblem& problem,
                                      const DeviceProfile& device) {
  MatmulProblem p = merge_rows(problem);
  assert(p.N >= 1 && p.K >= 1);
  if (!is_planned(p, device)) {
    return std::nullopt;
  }
  LaunchPlan launch = gradient_launch(p, Family::kGroupGradient, p.batch.count);
  bind(launch, {Operand::kWeight, Operand::kX, Operand::kDy, Operand::kOut});
  launch.params = as_bytes(GradientParams{
      p.M, p.N, p.K, p.batch.count, p.batch.size / p.batch.count, p.transpose});
  return {{std::move(launch)}};
}

std::optional<Launches> plan_gradient(const GatherProblem& p,
                                      const DeviceProfile& device) {
  assert(p.N >= 1 && p.K >= 1);
  if (!is_planned(p, device)) {
    return std::nullopt;
  }
  LaunchPlan launch =
      gradient_launch(p, Family::kGatherGroupGradient, p.experts);
  bind(launch,
       {Operand::kWeight,
        Operand::kX,
        Operand::kDy,
        Operand::kLhsIndices,
        Operand::kRhsIndices,
        Operand::kOrder,
        Operand::kOut});
  launch.params =
      as_bytes(GatherGradientParams{p.M, p.N, p.K, p.B, p.transpose});
  return {{std::move(launch)}};
}

bool dense_gradient_is_faster(const MatmulProblem& p,
                              const DeviceProfile& device) {
  double rows = static_cast<double>(p.M) * p.batch.size / p.batch.count;
  return dense_is_faster(p, p.batch.count, rows, rows, device);
}

bool dense_gradient_is_faster(const GatherProblem& p,
                              const DeviceProfile& device) {
  // The dense way masks the rows of other experts: it multiplies all.
  double rows = static_cast<double>(p.M) * p.B;
  return dense_is_faster(p, p.experts, rows / p.experts, rows, device);
}

}  // namespace nibble
