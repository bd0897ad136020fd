// swiglu and gather_swiglu as a node of MLX's graph: the first half of a gated
// MLP.
#pragma once

#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/fast_node.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/plans.h"

namespace nibble {

// Two products and the activation between them; gathered if there are indices.
mx::array composed_swiglu(const mx::array& x,
                          const ops::QuantizedArrays& gate,
                          const ops::QuantizedArrays& up,
                          const ops::GatherIndices& indices,
                          const ops::QuantArgs& args,
                          const ops::MatmulOptions& options,
                          const mx::Stream& stream);

// Inputs {x; w, scales and biases of gate; those of up}, as QuantizedMatmul
// takes them, or {..., lhs, rhs} as GatherQmm does.
class SwigluMatmul : public FastPrimitive {
 public:
  enum Input {
    kX,
    kGate,  // three arrays each
    kUp = kGate + 3,
    kLhs = kUp + 3,  // if gathered
    kRhs,
  };

  SwigluMatmul(mx::Stream stream,
               QuantFormat format,
               bool gathered,
               bool sorted,
               ops::MatmulOptions options)
      : FastPrimitive(stream),
        format_(format),
        gathered_(gathered),
        sorted_(sorted),
        options_(options) {
    options_.symmetric = format.mode == Mode::kSymmetric;
  }

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleSwigluMatmul"; }
  bool is_equivalent(const mx::Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  const ops::MatmulOptions& options() const { return options_; }

  // The launches on a GPU; null if two products are faster.
  plans::Plan launches(const std::vector<mx::array>& inputs);

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  MatmulProblem dense_problem(const std::vector<mx::array>& inputs);
  GatherProblem gather_problem(const std::vector<mx::array>& inputs) const;

  QuantFormat format_;
  bool gathered_;
  bool sorted_;
  ops::MatmulOptions options_;
};

}  // namespace nibble
