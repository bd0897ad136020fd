// Attention as a node of MLX's graph, on the CPU alone.
#pragma once

#include <optional>
#include <vector>

#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

struct AttentionOptions {
  float scale;
  float cap;  // of scores, as in cpu::Attention; 0: none
  bool causal;
  bool has_mask, has_sinks;
  bool batch_invariant;
  // The number of keys and values to use, of a longer cache; 0: all.
  int keys = 0;
  // The output is [B, L, heads * Dv], not [B, heads, L, Dv].
  bool flat = false;
  // The format of quantized keys and values; 0: they are floats.
  int bits = 0, group_size = 0;

  int arrays() const { return bits > 0 ? 3 : 1; }  // of keys, and of values
  bool operator==(const AttentionOptions&) const = default;
};

// Attention whose scores have a cap, by MLX's operations; without sinks.
mx::array capped_attention(const mx::array& q,
                           const mx::array& k,
                           const mx::array& v,
                           const AttentionOptions& options,
                           const std::optional<mx::array>& mask,
                           const mx::Stream& s);

// Inputs {q [B, heads, L, D], k [B, kv_heads, S, D], v [B, kv_heads, S, Dv]}.
// Quantized keys and values are three arrays each: codes, scales and biases. If
// has_mask, a mask follows that broadcasts to [B, heads, L, S]; its last
// dimension is S. If has_sinks, float32 sinks [heads] follow. If `keys` is set,
// it replaces S, and k and v may be longer.
class AttentionPrimitive
    : public FastNode<AttentionPrimitive, AttentionOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleAttention";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
