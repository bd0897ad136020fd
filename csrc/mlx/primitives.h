// Nodes of MLX's graph. Their inputs have been validated and brought into
// form by ops.cpp.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/ops.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

class JointProducts;

// Inputs {x, w, scales, biases}, then bias [N] and residual (of the output's
// shape) if the epilogue has them. w [N, K'] serves all rows of x [..., in];
// w [batch..., N, K'] needs x [batch..., M, in] already broadcast, in a way
// that match_batch() finds. Output: x's shape, its last dimension replaced.
class QuantizedMatmul : public mx::Primitive {
 public:
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
    options_.symmetric = !format.has_biases();
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

  const QuantFormat& format() const { return format_; }
  bool transpose() const { return transpose_; }
  const ops::MatmulOptions& options() const { return options_; }
  const Epilogue& epilogue() const { return epilogue_; }

  // Makes it one of these.
  void join(std::shared_ptr<JointProducts> products) {
    joint_ = std::move(products);
  }

 private:
  // quantized_matmul of other arrays, with these options.
  mx::array apply(const mx::array& x,
                  const mx::array& w,
                  const mx::array& scales,
                  const mx::array& biases,
                  bool transpose,
                  const ops::MatmulOptions& options,
                  const ops::Addends& addends = {});

  // Where among the inputs they are, if they are.
  int bias_input() const { return epilogue_.bias ? 4 : -1; }
  int residual_input() const {
    return epilogue_.residual ? 4 + epilogue_.bias : -1;
  }

  MatmulProblem problem(const std::vector<mx::array>& inputs);

  QuantFormat format_;
  bool transpose_;
  ops::MatmulOptions options_;
  Epilogue epilogue_;
  std::shared_ptr<JointProducts> joint_;  // on a GPU
};

// Inputs {x [..., M, in], w [..., N, K'], scales, biases, lhs, rhs}, the last
// two of one shape [...] and uint32. Output [..., M, out] in that shape.
// `in_turn` says that lhs is each matrix of x in turn, as where none was given.
class GatherQmm : public mx::Primitive {
 public:
  GatherQmm(mx::Stream stream,
            QuantFormat format,
            bool transpose,
            bool sorted,
            bool in_turn,
            ops::MatmulOptions options)
      : Primitive(stream),
        format_(format),
        transpose_(transpose),
        sorted_(sorted),
        in_turn_(in_turn),
        options_(options) {
    options_.symmetric = !format.has_biases();
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
  static constexpr const char* kName = "NibbleGatherQMM";
  const char* name() const override { return kName; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  const QuantFormat& format() const { return format_; }
  bool transpose() const { return transpose_; }
  bool sorted() const { return sorted_; }
  bool in_turn() const { return in_turn_; }
  const ops::MatmulOptions& options() const { return options_; }

 private:
  // gather_qmm of other arrays; `symmetric` if these are still so.
  mx::array apply(const std::vector<mx::array>& inputs, bool symmetric);

  GatherProblem problem(const std::vector<mx::array>& inputs) const;

  // d/d w_hat [.., N, K] in float32: the sum over the products that chose it.
  mx::array weight_gradient(const std::vector<mx::array>& primals,
                            const mx::array& dy);

  QuantFormat format_;
  bool transpose_;
  bool sorted_;
  bool in_turn_;
  ops::MatmulOptions options_;
};

// Inputs {w, scales, biases}, output w_hat [..., N, K].
class Dequantize : public mx::Primitive {
 public:
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

 private:
  QuantFormat format_;
  mx::Dtype dtype_;
};

}  // namespace nibble
