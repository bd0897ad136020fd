// Attention as a node of MLX's graph, on the CPU alone.
#pragma once

#include <vector>

#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

struct AttentionOptions {
  float scale;
  bool causal;
  bool has_mask, has_sinks;
  bool batch_invariant;
  // Keys and values that count, of more that there is room for; 0: all.
  int keys = 0;
  // The output is [B, L, heads * Dv] instead of [B, heads, L, Dv].
  bool flat = false;

  bool operator==(const AttentionOptions&) const = default;
};

// Inputs {q [B, heads, L, D], k [B, kv_heads, S, D], v [B, kv_heads, S, Dv]},
// then a mask that broadcasts to [B, heads, L, S], its last dimension S, if
// has_mask, then float32 sinks [heads] if has_sinks. If `keys` is set, S is
// that and k and v may be longer.
class AttentionPrimitive
    : public FastNode<AttentionPrimitive, AttentionOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleAttention";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
