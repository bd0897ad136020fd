// dequantize as a node of MLX's graph.
#pragma once

#include <utility>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/options.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// Inputs {w, scales, biases}, output w_hat [..., N, K].
class Dequantize : public mx::Primitive {
 public:
  enum Input { kW, kScales, kBiases };

  Dequantize(mx::Stream stream, QuantFormat format, mx::Dtype dtype)
      : Primitive(stream), format_(format), dtype_(dtype) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;

  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  std::pair<std::vector<mx::array>, std::vector<int>> vmap(
      const std::vector<mx::array>& inputs,
      const std::vector<int>& axes) override;
  const char* name() const override { return "NibbleDequantize"; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  DequantizeProblem problem(const std::vector<mx::array>& inputs) const;

 private:
  QuantFormat format_;
  mx::Dtype dtype_;
};

}  // namespace nibble
