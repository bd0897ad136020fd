// The gradients of the scales and biases of quantized_matmul and gather_qmm.
#pragma once

#include <memory>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/fast_node.h"
#include "csrc/mlx/nodes/transforms.h"

namespace nibble {

struct GradientOptions {
  QuantFormat format;
  bool transpose;
  bool gathered;

  bool operator==(const GradientOptions&) const = default;
};

// Inputs {x, dy, w}, or {x, dy, w, lhs, rhs, order} if gathered: x, w and
// indices as the product has them, and the gradient of its result. `order` has
// the products by their experts; the CPU has no need of it. Output [2, ..., N,
// K / group_size] in float32: scales and biases.
class GroupGradient : public FastNode<GroupGradient, GradientOptions> {
 public:
  enum Input { kX, kDy, kW, kLhs, kRhs, kOrder };

  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleGroupGradient";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  // Returns the output from these inputs, `order` not among them: by this node
  // if our kernels compute it there, else by MLX's operations.
  static GroupGradients of(const std::vector<mx::array>& inputs,
                           const GradientOptions& options,
                           const mx::Stream& stream);
  // True if `of` would make a node.
  static bool is_ours(const std::vector<mx::array>& inputs,
                      const GradientOptions& options,
                      const mx::Stream& stream);

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  Product product_of(const std::vector<mx::array>& inputs) const;
  MatmulProblem matmul_problem(const std::vector<mx::array>& inputs) const;
  GatherProblem gather_problem(const std::vector<mx::array>& inputs) const;

  // d/d w_hat [..., N, K] in float32: the whole product.
  mx::array dense(const std::vector<mx::array>& inputs);
  mx::array dense_of_experts(const std::vector<mx::array>& inputs);

  // Columns K of w_hat.
  int columns(const std::vector<mx::array>& inputs) const {
    return inputs[options().transpose ? kX : kDy].shape(-1);
  }
};

// True if a gradient of scales or biases may be wanted. `inputs` are
// {x, w, scales, biases, ...}.
bool trains_groups(const std::vector<mx::array>& inputs, QuantFormat format);

// `y`, which MLX computes from the inputs {x, w, scales, biases, ...} of
// `node`, with the gradients of `node`.
mx::array with_gradients_of(const std::shared_ptr<mx::Primitive>& node,
                            const std::vector<mx::array>& inputs,
                            const mx::array& y);

}  // namespace nibble
