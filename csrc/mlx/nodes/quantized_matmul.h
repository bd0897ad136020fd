// quantized_matmul as a node of MLX's graph. ops/ checks its inputs and brings
// them into this form.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/options.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

class QuantizedMatmul;

// Products that one launch computes (fusion/joint.cpp).
class JointProducts {
 public:
  virtual ~JointProducts() = default;

  // Computes `out`, the output of `node`, together with those of the others.
  // Returns false if the node must be computed by itself.
  virtual bool compute(QuantizedMatmul& node,
                       const mx::array& x,
                       mx::array& out) = 0;
};

// Inputs {x, w, scales, biases}, then bias [N] and residual (of the output's
// shape) if the epilogue has them. All rows of x [..., in] share a w [N, K'].
// A w [batch..., N, K'] needs an x [batch..., M, in] that is broadcast already,
// as match_batch() describes. Output: x's shape with another last dimension.
class QuantizedMatmul : public mx::Primitive {
 public:
  enum Input { kX, kW, kScales, kBiases, kBias };

  QuantizedMatmul(mx::Stream stream,
                  QuantFormat format,
                  bool transpose,
                  ops::MatmulOptions options,
                  Epilogue epilogue)
      : Primitive(stream),
        format_(format),
        transpose_(transpose),
        options_(options),
        epilogue_(epilogue) {
    options_.symmetric = format.mode == Mode::kSymmetric;
  }

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
  static constexpr const char* kName = "NibbleQuantizedMatmul";
  const char* name() const override { return kName; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  mx::Shape output_shape(const std::vector<mx::array>& inputs) const;

  const QuantFormat& format() const { return format_; }
  bool transpose() const { return transpose_; }
  const ops::MatmulOptions& options() const { return options_; }
  const Epilogue& epilogue() const { return epilogue_; }

  MatmulProblem problem(const std::vector<mx::array>& inputs);

  // Makes this node one of these products.
  void join(std::shared_ptr<JointProducts> products) {
    joint_ = std::move(products);
  }

 private:
  // The three inputs of a matrix.
  struct Matrix {
    mx::array w, scales, biases;
  };

  // quantized_matmul of other arrays, with these options.
  mx::array apply(const mx::array& x,
                  const Matrix& matrix,
                  bool transpose,
                  const ops::MatmulOptions& options,
                  const ops::Addends& addends = {});

  // The indices of these inputs; -1: there is none.
  int bias_input() const { return epilogue_.bias ? kBias : -1; }
  int residual_input() const {
    return epilogue_.residual ? kBias + epilogue_.bias : -1;
  }

  QuantFormat format_;
  bool transpose_;
  ops::MatmulOptions options_;
  Epilogue epilogue_;
  std::shared_ptr<JointProducts> joint_;  // on a GPU
};

}  // namespace nibble
