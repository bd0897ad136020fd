// The arrays that a launch may bind: every list of them is indexed by Operand.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string_view>

namespace nibble {

enum class Operand : uint8_t {
  kWeight,
  kScales,
  kBiases,
  kUpWeight,  // of swiglu; its gate has the three operands above
  kUpScales,
  kUpBiases,
  kX,
  kDy,  // the gradient of a product's result
  kLhsIndices,
  kRhsIndices,
  kOrder,  // of products: by their weight matrices
  kBias,   // of an epilogue; kBiases are those of the groups
  kResidual,
  kSums,  // float32, from one launch of a plan to the next
  kOut,
  kWeight1,  // of the second joint product; the first has the operands above
  kScales1,
  kBiases1,
  kBias1,
  kOut1,
  kWeight2,  // of the third joint product
  kScales2,
  kBiases2,
  kBias2,
  kOut2,
};

// The names of all operands, in the order of the enum.
inline constexpr std::string_view kOperandNames[] = {
    "w",         "scales",  "biases",   "up_w",        "up_scales",
    "up_biases", "x",       "dy",       "lhs_indices", "rhs_indices",
    "order",     "bias",    "residual", "sums",        "out",
    "w1",        "scales1", "biases1",  "bias1",       "out1",
    "w2",        "scales2", "biases2",  "bias2",       "out2",
};
inline constexpr size_t kOperands = std::size(kOperandNames);
static_assert(kOperands == static_cast<size_t>(Operand::kOut2) + 1);

constexpr std::string_view to_string(Operand operand) {
  return kOperandNames[static_cast<size_t>(operand)];
}

// The operand of this name; nullopt if there is none.
constexpr std::optional<Operand> parse_operand(std::string_view name) {
  const auto* found = std::ranges::find(kOperandNames, name);
  return found == std::end(kOperandNames)
             ? std::nullopt
             : std::optional(
                   static_cast<Operand>(found - std::begin(kOperandNames)));
}

// The arrays of a plan's operands. Null where the plan has no such operand.
template <typename Array>
class Bound {
 public:
  const Array*& operator[](Operand operand) {
    return arrays_[static_cast<size_t>(operand)];
  }
  const Array* operator[](Operand operand) const {
    return arrays_[static_cast<size_t>(operand)];
  }

 private:
  std::array<const Array*, kOperands> arrays_{};
};

// The operands of each joint product.
struct JointOperands {
  Operand w, scales, biases, bias, out;
};
inline constexpr JointOperands kJointOperands[] = {
    {Operand::kWeight,
     Operand::kScales,
     Operand::kBiases,
     Operand::kBias,
     Operand::kOut},
    {Operand::kWeight1,
     Operand::kScales1,
     Operand::kBiases1,
     Operand::kBias1,
     Operand::kOut1},
    {Operand::kWeight2,
     Operand::kScales2,
     Operand::kBiases2,
     Operand::kBias2,
     Operand::kOut2},
};

}  // namespace nibble
