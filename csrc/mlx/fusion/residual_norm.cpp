#include "csrc/mlx/nodes/residual_norm.h"

#include <memory>

#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/quantized_matmul.h"

namespace nibble::fusion {

std::optional<mx::array> residual_norm(const mx::array& h,
                                       const std::optional<mx::array>& weight,
                                       float eps,
                                       const mx::Stream& stream) {
  if (!graph::is_pending(h, "Add") ||
      (weight && !graph::is_constant(*weight))) {
    return std::nullopt;
  }
  for (int i : {1, 0}) {
    const mx::array &y = h.inputs()[i], &residual = h.inputs()[1 - i];
    if (!graph::is_pending(y, QuantizedMatmul::kName)) {
      continue;
    }
    const auto& product = static_cast<const QuantizedMatmul&>(y.primitive());
    bool fits = product.transpose() && !product.epilogue().residual &&
                y.shape() == h.shape() && residual.shape() == h.shape() &&
                y.dtype() == h.dtype() && residual.dtype() == h.dtype() &&
                y.primitive().stream() == stream &&
                h.primitive().stream() == stream;
    if (!fits) {
      continue;
    }
    std::vector<mx::array> inputs = y.inputs();
    inputs.push_back(residual);
    if (weight) {
      inputs.push_back(*weight);
    }
    auto primitive = std::make_shared<ResidualNorm>(stream,
                                                    product.format(),
                                                    product.options(),
                                                    product.epilogue().bias,
                                                    eps);
    mx::array normed(h.shape(),
                     weight ? mx::result_type(h, *weight) : h.dtype(),
                     primitive,
                     inputs);
    graph::become({h, normed}, primitive, inputs);
    return normed;
  }
  return std::nullopt;
}

}  // namespace nibble::fusion
