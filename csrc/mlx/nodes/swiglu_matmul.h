// swiglu and gather_swiglu as a node of MLX's graph: the first half of a gated
// MLP.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "csrc/core/format.h"
#include "csrc/core/launch_plan.h"
#include "csrc/core/problem.h"
#include "csrc/mlx/nodes/fast_node.h"
#include "csrc/mlx/options.h"

namespace nibble {

// What a caller asks for beside the arrays.
struct SwigluRequest {
  std::optional<int> group_size, bits;
  std::string mode;
  bool sorted;
  ops::MatmulOptions options;

  QuantFormat format() const {
    return {bits.value_or(4),
            group_size.value_or(64),
            affine_mode(options.symmetric)};
  }
  bool operator==(const SwigluRequest&) const = default;
};

// Two products and the activation between them; gathered if there are indices.
mx::array composed_swiglu(const mx::array& x,
                          const ops::QuantizedArrays& gate,
                          const ops::QuantizedArrays& up,
                          const std::optional<mx::array>& lhs,
                          const std::optional<mx::array>& rhs,
                          const SwigluRequest& request,
                          const mx::Stream& stream);

// Inputs {x, w, scales and biases of gate, those of up}, as QuantizedMatmul
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

  SwigluMatmul(mx::Stream stream, SwigluRequest request, bool gathered)
      : FastPrimitive(stream),
        request_(std::move(request)),
        gathered_(gathered) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleSwigluMatmul"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const SwigluMatmul&>(other);
    return request_ == o.request_ && gathered_ == o.gathered_;
  }
  std::vector<mx::Shape> output_shapes(
      const std::vector<mx::array>& inputs) override;

  // What a GPU would run; nullopt if it is better done as two products.
  std::optional<std::vector<LaunchPlan>> launches(
      const std::vector<mx::array>& inputs);

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override;

 private:
  MatmulProblem dense_problem(const std::vector<mx::array>& inputs);
  GatherProblem gather_problem(const std::vector<mx::array>& inputs) const;

  SwigluRequest request_;
  bool gathered_;
};

}  // namespace nibble
