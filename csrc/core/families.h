// The table of kernel families. A new family is a new row in families.cpp; the
// names, the instances, the trials, the trust of traced graphs and the tests
// read it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "csrc/core/device_profile.h"
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
  kGroupGradient,
  kGatherGroupGradient,
  kCudaQmmSkinny,
  kCudaQmmWgmma,
  kCudaGatherQmmSkinny,
  kCudaGatherSorted,
  kCudaDequantize,
  kCudaSwiglu,
  kCudaGatherSwiglu,
  kCudaSortedSwiglu,
};

// The function of planner.h that plans kernels of a family.
enum class Planner : uint8_t {
  kMatmul,          // plan(MatmulProblem), candidates()
  kGather,          // plan(GatherProblem)
  kJoint,           // plan_joint()
  kSwiglu,          // plan_swiglu(MatmulProblem)
  kGatherSwiglu,    // plan_swiglu(GatherProblem)
  kDequantize,      // plan(DequantizeProblem)
  kGradient,        // plan_gradient(MatmulProblem)
  kGatherGradient,  // plan_gradient(GatherProblem)
};

// The problems that may reach a family, at some numbers of rows, columns and
// products: those of `planner` with these properties.
struct Reach {
  Planner planner;
  std::optional<bool> transpose = true;  // any if there is none
  bool batch_invariant = false;          // batch-invariant problems, too
  bool sorted = false;                   // sorted products only
  std::optional<bool> in_half = {};      // only problems with this in_half()
};

using Shapes = std::vector<std::vector<int>>;

struct FamilyRow {
  Family family;
  std::string_view name;    // in kernel names
  std::string_view header;  // under kernels/
  // A Metal kernel is entry<nibble::type<shape...>, ...>, or name<...,
  // shape...> if there is no entry. A kernel of CUDA is nibble::type<...,
  // shape...>, made by the macro `entry`.
  std::string_view entry;
  std::string_view type;
  std::span<const std::string_view> labels;  // of the numbers of a shape
  Shapes (*shapes)(const Types&);            // all shapes for these types
  Reach reach;
  std::optional<Family> joint = {};  // the family for several products of one x
  Api api = Api::kMetal;
};

// All rows, in the order of the enumeration.
std::span<const FamilyRow> families();

const FamilyRow& row_of(Family family);

}  // namespace nibble
