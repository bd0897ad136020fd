// The gradients of attention as a node of MLX's graph, on the CPU alone.
#pragma once

#include <optional>
#include <vector>

#include "csrc/mlx/nodes/attention.h"

namespace nibble {

struct AttentionGradientOptions {
  float scale;
  bool causal;

  bool operator==(const AttentionGradientOptions&) const = default;
};

// Inputs {q, k, v, dy}, row-contiguous and float32. Output: one vector of dq,
// and of dk and dv for each head of queries.
class AttentionGradientNode
    : public FastNode<AttentionGradientNode, AttentionGradientOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleAttentionGradient";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  // Returns the gradients {dq, dk, dv} of an attention of these inputs, in
  // their types; nullopt if this node does not compute it.
  static std::optional<std::vector<mx::array>> of(
      const std::vector<mx::array>& inputs,
      const mx::array& dy,
      const AttentionOptions& options,
      const mx::Stream& stream);

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
