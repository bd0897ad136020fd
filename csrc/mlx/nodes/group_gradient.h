// The gradients of the scales and biases of quantized_matmul and gather_qmm.
#pragma once

#include <vector>

#include "csrc/mlx/nodes/fast_node.h"
#include "csrc/mlx/nodes/transforms.h"

namespace nibble {

struct GradientOptions {
  QuantFormat format;
  bool transpose;
  bool gathered;

  bool operator==(const GradientOptions&) const = default;
};

// Inputs {x, dy, w}, or {x, dy, w, lhs, rhs} if gathered: x, w and indices as
// the product has them, and the gradient of its result. Output [2, ..., N,
// K / group_size] in float32: scales and biases. A node on the CPU alone.
class GroupGradient : public FastNode<GroupGradient, GradientOptions> {
 public:
  enum Input { kX, kDy, kW, kLhs, kRhs };

  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleGroupGradient";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  // Returns the output from these inputs: this node on the CPU, MLX's
  // operations elsewhere.
  static GroupGradients of(const std::vector<mx::array>& inputs,
                           const GradientOptions& options,
                           const mx::Stream& stream);

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  // d/d w_hat [..., N, K] in float32: the whole product.
  mx::array dense(const std::vector<mx::array>& inputs);
  mx::array dense_of_experts(const std::vector<mx::array>& inputs);

  // Columns K of w_hat.
  int columns(const std::vector<mx::array>& inputs) const {
    return inputs[options().transpose ? kX : kDy].shape(-1);
  }
};

}  // namespace nibble
