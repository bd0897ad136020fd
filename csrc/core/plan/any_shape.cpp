// The kernels that a problem of any shape may use: the table of families, asked
// for the problem's types and properties.
#include "csrc/core/kernel_name.h"
#include "csrc/core/plan/cuda.h"
#include "csrc/core/planner.h"

namespace nibble {
namespace {

bool reaches(const Reach& reach, const Product& p) {
  return p.transpose == reach.transpose.value_or(p.transpose) &&
         (reach.batch_invariant || !p.batch_invariant);
}

bool reaches(const Reach& reach, const MatmulProblem& p) {
  return reaches(reach, static_cast<const Product&>(p)) &&
         p.in_half() == reach.in_half.value_or(p.in_half());
}

bool reaches(const Reach& reach, const GatherProblem& p) {
  return reaches(reach, static_cast<const Product&>(p)) &&
         (p.sorted || !reach.sorted);
}

bool reaches(const Reach&, const DequantizeProblem&) {
  return true;
}

template <typename Problem>
std::vector<std::string> kernels_of(Planner planner,
                                    const Problem& p,
                                    Api api) {
  bool gradient =
      planner == Planner::kGradient || planner == Planner::kGatherGradient;
  Types types = gradient ? gradient_types(p) : static_cast<const Types&>(p);
  std::vector<std::string> names;
  for (const FamilyRow& row : families()) {
    if (row.api != api || row.reach.planner != planner ||
        !reaches(row.reach, p)) {
      continue;
    }
    for (const KernelId& id : instances(row.family, types)) {
      names.push_back(kernel_name(id));
    }
  }
  return names;
}

}  // namespace

std::vector<std::string> kernels_of_any_shape(const MatmulProblem& p,
                                              Api api,
                                              Planner planner) {
  return kernels_of(planner, api == Api::kCuda ? without_symmetry(p) : p, api);
}

std::vector<std::string> kernels_of_any_shape(const GatherProblem& p,
                                              Api api,
                                              Planner planner) {
  return kernels_of(planner, api == Api::kCuda ? without_symmetry(p) : p, api);
}

std::vector<std::string> kernels_of_any_shape(const DequantizeProblem& p,
                                              Api api) {
  return kernels_of(
      Planner::kDequantize, api == Api::kCuda ? without_symmetry(p) : p, api);
}

}  // namespace nibble
