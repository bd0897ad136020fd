// gather_qmm as a node of MLX's graph: products that choose their weights.
#pragma once

#include <utility>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/options.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// Inputs {x [..., M, in], w [..., N, K'], scales, biases, lhs, rhs}, the last
// two of one shape [...] and uint32. Output [..., M, out] of that shape.
// `in_turn` is true if lhs counts the matrices of x because none was given.
class GatherQmm : public mx::Primitive {
 public:
  enum Input { kX, kW, kScales, kBiases, kLhs, kRhs };

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

  GatherProblem problem(const std::vector<mx::array>& inputs) const;

 private:
  // gather_qmm of other arrays, with these options.
  mx::array apply(const std::vector<mx::array>& inputs,
                  const ops::MatmulOptions& options);

  QuantFormat format_;
  bool transpose_;
  bool sorted_;
  bool in_turn_;
  ops::MatmulOptions options_;
};

}  // namespace nibble
