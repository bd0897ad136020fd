#include "csrc/core/trial.h"

#include "csrc/core/planner.h"
#include "kernels/shared.h"

namespace nibble {
namespace {

using Kind = Trial::Kind;
using Launches = std::vector<LaunchPlan>;

// Rows of w: two tiles of 32 and a rest that is no multiple of anything.
constexpr int kN = 67;
// Five groups are no multiple of what simdgroups take at a time; kernels for
// short rows get one, and one that splits K gets two parts or more of it.
constexpr int kGroups[] = {5, 1, 33};
// Rows of x: the largest that fits, for more than one tile; odd if there is
// one, for a ragged edge.
constexpr int kLargestM = 67;
// Products that choose among experts: enough for tiles of sorted ones.
constexpr int kProducts = 67;
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

MatmulProblem dense(const Trial& t) {
  MatmulProblem p;
  p.M = t.M;
  p.N = t.N;
  p.K = t.K;
  p.dtype = t.dtype;
  p.scale_dtype = t.scale_dtype;
  p.format = t.format;
  p.transpose = t.kind != Kind::kNotTransposed;
  p.epilogue = {t.epilogue, t.epilogue};
  return p;
}

GatherProblem gathered(const Trial& t) {
  GatherProblem p;
  p.B = t.B;
  p.M = t.M;
  p.N = t.N;
  p.K = t.K;
  p.experts = t.experts;
  p.rows = t.rows;
  p.dtype = t.dtype;
  p.scale_dtype = t.scale_dtype;
  p.format = t.format;
  p.sorted = t.sorted;
  p.transpose = t.kind != Kind::kNotTransposed;
  return p;
}

// What could be planned for the shapes of `t` by a kernel of this family.
std::vector<Launches> plans(Family family,
                            const Trial& t,
                            const DeviceProfile& device) {
  auto one = [](std::optional<Launches> launches) {
    return launches ? std::vector<Launches>{std::move(*launches)}
                    : std::vector<Launches>{};
  };
  switch (family) {
    case Family::kQmv:
    case Family::kQmvQuad:
    case Family::kQmvMulti:
    case Family::kQmmSkinny:
    case Family::kQmm:
    case Family::kQmmSplitk:
    case Family::kQmmSplitkSum:
    case Family::kQvm:
    case Family::kQmmN:
      return candidates(dense(t), device);
    case Family::kQmmHalf: {
      MatmulProblem p = dense(t);
      p.half_tiles = true;
      return candidates(p, device);
    }
    case Family::kGatherQmv:
    case Family::kGatherQmmSkinny:
    case Family::kGatherQmm:
    case Family::kGatherQvm:
    case Family::kGatherQmmN:
    case Family::kGatherSortedQmmN:
      return one(plan(gathered(t), device));
    case Family::kJointQmv:
    case Family::kJointQmvMulti:
    case Family::kJointQmmSkinny: {
      MatmulProblem p = dense(t);
      p.epilogue.residual = false;
      return one(plan_joint(std::vector(NIBBLE_JOINT, p), device));
    }
    case Family::kSwiglu:
      return one(plan_swiglu(dense(t)));
    case Family::kGatherSwiglu:
      return one(plan_swiglu(gathered(t)));
    case Family::kDequantize:
      return one(
          plan(DequantizeProblem{t.N, t.K, t.dtype, t.scale_dtype, t.format},
               device));
  }
  return {};
}

// The trial that the shapes are still to be found for.
Trial blank(const KernelId& id) {
  Trial t;
  t.N = kN;
  t.dtype = id.dtype;
  t.scale_dtype = id.scale_dtype;
  t.format = id.format;
  switch (id.family) {
    case Family::kQmv:
    case Family::kQmvQuad:
    case Family::kQmvMulti:
    case Family::kQmmSkinny:
    case Family::kQmm:
    case Family::kQmmHalf:
    case Family::kQmmSplitk:
    case Family::kQmmSplitkSum:
      t.epilogue = true;
      return t;
    case Family::kQvm:
    case Family::kQmmN:
      t.kind = Kind::kNotTransposed;
      return t;
    case Family::kJointQmv:
    case Family::kJointQmvMulti:
    case Family::kJointQmmSkinny:
      t.kind = Kind::kJoint;
      t.epilogue = true;
      t.B = t.experts = NIBBLE_JOINT;
      return t;
    case Family::kDequantize:
      t.kind = Kind::kDequantize;
      return t;
    case Family::kSwiglu:
      t.kind = Kind::kSwiglu;
      return t;
    case Family::kGatherSwiglu:
      t.kind = Kind::kSwiglu;
      break;
    case Family::kGatherQmm:
      t.sorted = true;
      break;
    case Family::kGatherSortedQmmN:
      t.kind = Kind::kNotTransposed;
      t.sorted = true;
      break;
    case Family::kGatherQvm:
    case Family::kGatherQmmN:
      t.kind = Kind::kNotTransposed;
      break;
    case Family::kGatherQmv:
    case Family::kGatherQmmSkinny:
      break;
  }
  t.B = kProducts;
  t.rows = kChosenRows;
  t.experts = kExperts;
  return t;
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
  Trial t = blank(id);
  for (int groups : kGroups) {
    t.K = groups * id.format.group_size;
    for (int M : numbers_of_rows()) {
      t.M = M;
      for (Launches& launches : plans(id.family, t, device)) {
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
