// x @ w^T with weights that are not quantized, as a node on the CPU alone.
#pragma once

#include <variant>
#include <vector>

#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

// Inputs {x [..., K], w [N, K]} and perhaps bias [N]. x, bias and the output
// have one type.
class DenseMatmulPrimitive
    : public FastNode<DenseMatmulPrimitive, std::monostate> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleDenseMatmul";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
