// The end of one layer and the start of the next as one node: a product added
// to the residual stream, and the norm of the sum.
#pragma once

#include <vector>

#include "csrc/core/problem.h"
#include "csrc/mlx/options.h"
#include "mlx/primitives.h"

namespace nibble {

namespace mx = mlx::core;

// Inputs {x, w, scales, biases}, then the product's bias if there is one, the
// residual h0 [..., N], and the norm's weight [N] if there is one. Outputs
// h = h0 + x @ w_hat^T + bias and RMSNorm(h).
class ResidualNorm : public mx::Primitive {
 public:
  ResidualNorm(mx::Stream stream,
               QuantFormat format,
               ops::MatmulOptions options,
               bool has_bias,
               float eps)
      : Primitive(stream),
        format_(format),
        options_(options),
        has_bias_(has_bias),
        eps_(eps) {}

  void eval_cpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs,
                std::vector<mx::array>& outputs) override;
  const char* name() const override { return "NibbleResidualNorm"; }
  bool is_equivalent(const mx::Primitive& other) const override {
    const auto& o = static_cast<const ResidualNorm&>(other);
    return format_ == o.format_ && options_ == o.options_ &&
           has_bias_ == o.has_bias_ && eps_ == o.eps_;
  }

 private:
  QuantFormat format_;
  ops::MatmulOptions options_;
  bool has_bias_;
  float eps_;
};

}  // namespace nibble
