#include "csrc/core/trial.h"

#include "csrc/core/planner.h"

namespace nibble {
namespace {

// Rows of w: two tiles of 32 and a rest that is no multiple of anything.
constexpr int kN = 67;

// Rows of x, the first that fits: odd numbers first, for a ragged edge, and
// large ones, for more than one tile.
constexpr int kLargestM = 67;

std::vector<int> rows_of_x() {
  std::vector<int> all;
  for (int M = kLargestM; M >= 1; M -= 2) {
    all.push_back(M);
  }
  for (int M = kLargestM - 1; M >= 2; M -= 2) {
    all.push_back(M);
  }
  return all;
}

bool names(const std::vector<LaunchPlan>& launches, const std::string& kernel) {
  for (const LaunchPlan& launch : launches) {
    if (launch.kernel == kernel) {
      return true;
    }
  }
  return false;
}

std::optional<Trial> dequantize_trial(const KernelId& id) {
  Trial t;
  t.dequantize = true;
  t.problem.N = kN;
  t.problem.K = 5 * id.format.group_size;
  t.problem.dtype = id.dtype;
  t.problem.scale_dtype = id.scale_dtype;
  t.problem.format = id.format;
  auto launches = plan(
      DequantizeProblem{kN, t.problem.K, id.dtype, id.scale_dtype, id.format},
      DeviceProfile{});
  if (!launches) {
    return std::nullopt;
  }
  t.launches = std::move(*launches);
  return t;
}

}  // namespace

std::optional<Trial> trial(const KernelId& id, const DeviceProfile& device) {
  if (id.family == Family::kDequantize) {
    return dequantize_trial(id);
  }
  std::string kernel = kernel_name(id);
  Trial t;
  t.problem.N = kN;
  t.problem.dtype = id.dtype;
  t.problem.scale_dtype = id.scale_dtype;
  t.problem.format = id.format;
  // Five groups are no multiple of what simdgroups take at a time; kernels for
  // short rows get one.
  for (int groups : {5, 1}) {
    t.problem.K = groups * id.format.group_size;
    for (int M : rows_of_x()) {
      t.problem.M = M;
      for (std::vector<LaunchPlan>& launches : candidates(t.problem, device)) {
        if (names(launches, kernel)) {
          t.launches = std::move(launches);
          return t;
        }
      }
    }
  }
  return std::nullopt;
}

}  // namespace nibble
