// The layers between the products as nodes of MLX's graph, on the CPU alone.
#pragma once

#include <variant>
#include <vector>

#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

// Inputs {x [..., D]} or {x, weight [D]}. The option is eps.
class RmsNormPrimitive : public FastNode<RmsNormPrimitive, float> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleRMSNorm";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

struct RopeOptions {
  int dims;
  bool traditional;
  float base;  // unused if has_periods
  float scale;
  int offset;  // unused if has_offsets
  bool has_offsets, has_periods;

  bool operator==(const RopeOptions&) const = default;
};

// Inputs {x [B, ..., L, D]}, then int32 offsets [] or [B] if has_offsets,
// then float32 periods [dims / 2] if has_periods.
class RopePrimitive : public FastNode<RopePrimitive, RopeOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleRoPE";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

// Inputs {x [..., D]}, output [..., 1].
class LogSumExpPrimitive : public FastNode<LogSumExpPrimitive, std::monostate> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleLogSumExp";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

// Inputs {x [..., D]}, output [..., 1], uint32.
class ArgMaxPrimitive : public FastNode<ArgMaxPrimitive, std::monostate> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleArgMax";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
