#include "csrc/core/trial.h"

#include <algorithm>
#include <iterator>

#include "csrc/core/planner.h"
#include "kernels/shared.h"

namespace nibble {
namespace {

using Kind = Trial::Kind;
using Launches = std::vector<LaunchPlan>;

// Rows of w: two tiles of 32 and a rest that is no multiple of any block.
constexpr int kN = 67;
// Groups in K, of 32 columns or more, tried in order. Five is no multiple of
// the groups that simdgroups take at a time. Kernels for short rows need one
// group, and kernels that split K need two parts or more.
constexpr int kGroups[] = {5, 1, 33, 4};
// Rows of x: the largest number that leads to the kernel, for more than one
// tile; an odd number if there is one, for a ragged edge.
constexpr int kLargestM = 67;
// Products that choose among experts, tried in order: enough for each tile of
// sorted products, of which an expert has B / kExperts.
constexpr int kProducts[] = {67, 151, 13, 43};
constexpr int kExperts = 3;
constexpr int kChosenRows = 5;

std::vector<int> numbers_of_rows() {
  std::vector<int> all;
  for (int M = kLargestM; M >= 1; M -= 2) {
    all.push_back(M);
  }
  for (int M = kLargestM - 1; M >= 2; M -= 2) {
    all.push_back(M);
  }
  return all;
}

MatmulProblem dense(const Trial& t, const Reach& reach) {
  MatmulProblem p;
  static_cast<Product&>(p) = t;
  p.half_tiles = reach.in_half.value_or(false);
  p.epilogue = {t.epilogue, t.epilogue && t.kind != Kind::kJoint};
  return p;
}

GatherProblem gathered(const Trial& t) {
  GatherProblem p;
  static_cast<Product&>(p) = t;
  p.B = t.B;
  p.experts = t.experts;
  p.rows = t.rows;
  p.sorted = t.sorted;
  return p;
}

// Returns all plans of the family's planner for the shapes of `t`.
std::vector<Launches> plans(const Reach& reach,
                            const Trial& t,
                            const DeviceProfile& device) {
  auto one = [](std::optional<Launches> launches) {
    return launches ? std::vector<Launches>{std::move(*launches)}
                    : std::vector<Launches>{};
  };
  switch (reach.planner) {
    case Planner::kMatmul:
      return candidates(dense(t, reach), device);
    case Planner::kGather:
      return one(plan(gathered(t), device));
    case Planner::kJoint:
      return one(
          plan_joint(std::vector(NIBBLE_JOINT, dense(t, reach)), device));
    case Planner::kSwiglu:
      return one(plan_swiglu(dense(t, reach), device));
    case Planner::kGatherSwiglu:
      return one(plan_swiglu(gathered(t), device));
    case Planner::kDequantize:
      return one(plan(DequantizeProblem{t, t.N, t.K}, device));
    case Planner::kGradient:
      return one(plan_gradient(dense(t, reach), device));
    case Planner::kGatherGradient:
      return one(plan_gradient(gathered(t), device));
  }
  return {};
}

Kind kind_of(const Reach& reach) {
  switch (reach.planner) {
    case Planner::kMatmul:
    case Planner::kGather:
      return reach.transpose.value_or(true) ? Kind::kProduct
                                            : Kind::kNotTransposed;
    case Planner::kJoint:
      return Kind::kJoint;
    case Planner::kSwiglu:
    case Planner::kGatherSwiglu:
      return Kind::kSwiglu;
    case Planner::kDequantize:
      return Kind::kDequantize;
    case Planner::kGradient:
    case Planner::kGatherGradient:
      return Kind::kGradient;
  }
  return {};
}

// Returns the trial without M, K and launches.
Trial blank(const KernelId& id) {
  const Reach& reach = row_of(id.family).reach;
  Trial t;
  static_cast<Types&>(t) = id;
  t.N = kN;
  t.transpose = reach.transpose.value_or(true);
  t.kind = kind_of(reach);
  t.sorted = reach.sorted;
  if (reach.planner == Planner::kMatmul) {
    t.epilogue = t.transpose;
  } else if (reach.planner == Planner::kJoint) {
    t.epilogue = true;
    t.B = t.experts = NIBBLE_JOINT;
  } else if (reach.planner == Planner::kGather ||
             reach.planner == Planner::kGatherSwiglu) {
    t.B = kProducts[0];
    t.rows = kChosenRows;
    t.experts = kExperts;
  } else if (reach.planner == Planner::kGatherGradient) {
    // Few products: each has many rows.
    t.B = t.rows = kChosenRows;
    t.experts = kExperts;
  }
  return t;
}

// Returns the numbers of products to try.
std::vector<int> numbers_of_products(const Trial& t, const Reach& reach) {
  return reach.sorted
             ? std::vector<int>(std::begin(kProducts), std::end(kProducts))
             : std::vector{t.B};
}

bool names(const Launches& launches, const std::string& kernel) {
  for (const LaunchPlan& launch : launches) {
    if (launch.kernel == kernel) {
      return true;
    }
  }
  return false;
}

}  // namespace

std::optional<Trial> trial(const KernelId& id, const DeviceProfile& device) {
  std::string kernel = kernel_name(id);
  const Reach& reach = row_of(id.family).reach;
  Trial t = blank(id);
  for (int B : numbers_of_products(t, reach)) {
    t.B = B;
    for (int groups : kGroups) {
      t.K = groups * std::max(id.format.group_size, 32);
      for (int M : numbers_of_rows()) {
        t.M = M;
        for (Launches& launches : plans(reach, t, device)) {
          if (names(launches, kernel)) {
            t.launches = std::move(launches);
            return t;
          }
        }
      }
    }
  }
  return std::nullopt;
}

}  // namespace nibble
