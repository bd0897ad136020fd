// gather_mm as a node on the CPU alone: products with weights that are not
// quantized, which choose their weights.
#pragma once

#include <vector>

#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

struct GatherMmOptions {
  bool sorted;  // rhs never falls

  bool operator==(const GatherMmOptions&) const = default;
};

// Inputs {x [..., M, K], w [..., N, K], lhs, rhs}, the last two of one shape
// [...] and uint32. Output [..., M, N] of that shape and the type of x.
class GatherMmPrimitive : public FastNode<GatherMmPrimitive, GatherMmOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleGatherMM";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
