// Activations, normalization and depthwise convolution as nodes of MLX's graph,
// on the CPU alone.
#pragma once

#include <vector>

#include "csrc/cpu/activation.h"
#include "csrc/mlx/nodes/fast_node.h"

namespace nibble {

// Inputs {gate} or {gate, up} of one shape and type.
class ActivationPrimitive
    : public FastNode<ActivationPrimitive, cpu::ActivationOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleActivation";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

struct LayerNormOptions {
  float eps;
  bool has_weight, has_bias;

  bool operator==(const LayerNormOptions&) const = default;
};

// Inputs {x [..., D]}, then weight [D] and bias [D] if there are any.
class LayerNormPrimitive
    : public FastNode<LayerNormPrimitive, LayerNormOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleLayerNorm";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

struct ConvolutionOptions {
  bool silu;

  bool operator==(const ConvolutionOptions&) const = default;
};

// Inputs {x [B, T + taps - 1, C], w [C, taps, 1]}, output [B, T, C].
class ConvolutionPrimitive
    : public FastNode<ConvolutionPrimitive, ConvolutionOptions> {
 public:
  using FastNode::FastNode;

  static constexpr const char* kName = "NibbleConvolution";
  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;
};

}  // namespace nibble
