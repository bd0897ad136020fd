// The table of kernel families. A new family is a new row in families.cpp; the
// names, the instances, the trials, the trust of traced graphs and the tests
// read it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/core/problem.h"

namespace nibble {

enum class Family : uint8_t {
  kQmv,
  kQmvQuad,
  kQmvMulti,
  kQmmSkinny,
  kQmm,
  kQmmHalf,
  kQmmSplitk,
  kQmmSplitkSum,
  kQvm,
  kQmmN,
  kJointQmv,
  kJointQmvMulti,
  kJointQmmSkinny,
  kGatherQmv,
  kGatherQmmSkinny,
  kGatherQmm,
  kGatherQvm,
  kGatherQmmN,
  kGatherSortedQmmN,
  kSwiglu,
  kGatherSwiglu,
  kDequantize,
};

// The function of planner.h that plans kernels of a family.
enum class Planner : uint8_t {
  kMatmul,        // plan(MatmulProblem), candidates()
  kGather,        // plan(GatherProblem)
  kJoint,         // plan_joint()
  kSwiglu,        // plan_swiglu(MatmulProblem)
  kGatherSwiglu,  // plan_swiglu(GatherProblem)
  kDequantize,    // plan(DequantizeProblem)
};

// The problems that some shape may lead to a family: those of `planner` with
// these properties.
struct Reach {
  Planner planner;
  bool transpose = true;
  bool batch_invariant = false;      // also problems that must be
  bool sorted = false;               // only problems that are
  std::optional<bool> in_half = {};  // only problems that are, or are not
};

using Shapes = std::vector<std::vector<int>>;

struct FamilyRow {
  Family family;
  std::string_view name;    // in kernel names
  std::string_view header;  // under kernels/
  // The kernel is entry<nibble::type<shape...>, ...>, or name<..., shape...> if
  // there is no entry.
  std::string_view entry;
  std::string_view type;
  std::span<const std::string_view> labels;  // of the numbers of a shape
  Shapes (*shapes)(const Types&);            // all shapes for these types
  Reach reach;
  std::optional<Family> joint = {};  // does the same for several products
};

// All rows, in the order of the enumeration.
std::span<const FamilyRow> families();

const FamilyRow& row_of(Family family);

}  // namespace nibble
