#include "csrc/mlx/nodes/residual_norm.h"

#include <memory>

#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/quantized_matmul.h"

namespace nibble::fusion {
namespace {

// The sum of a product of ours and a residual.
struct Sum {
  mx::array product, residual;

  const QuantizedMatmul& node() const {
    return static_cast<const QuantizedMatmul&>(product.primitive());
  }
};

// The sum that h waits for; nullopt if it is another, or on another stream.
std::optional<Sum> sum_of(const mx::array& h) {
  if (!graph::is_pending(h, "Add")) {
    return std::nullopt;
  }
  for (int i : {1, 0}) {
    Sum sum{h.inputs()[i], h.inputs()[1 - i]};
    const mx::array &y = sum.product, &residual = sum.residual;
    if (!graph::is_pending(y, QuantizedMatmul::kName)) {
      continue;
    }
    bool fits = sum.node().transpose() && !sum.node().epilogue().residual &&
                y.shape() == h.shape() && residual.shape() == h.shape() &&
                y.dtype() == h.dtype() && residual.dtype() == h.dtype() &&
                y.primitive().stream() == h.primitive().stream();
    if (fits) {
      return sum;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<mx::array> residual_norm(const mx::array& h,
                                       const std::optional<mx::array>& weight,
                                       float eps,
                                       const mx::Stream& stream) {
  auto sum = sum_of(h);
  if (!sum || h.primitive().stream() != stream) {
    return std::nullopt;
  }
  if (weight && !graph::is_constant(*weight)) {
    // The sum is rounded once, as it is with a weight that waits for nothing.
    add_residual(h);
    return std::nullopt;
  }
  const QuantizedMatmul& product = sum->node();
  std::vector<mx::array> inputs = sum->product.inputs();
  inputs.push_back(sum->residual);
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

void add_residual(const mx::array& h) {
  auto sum = sum_of(h);
  if (!sum) {
    return;
  }
  const QuantizedMatmul& product = sum->node();
  std::vector<mx::array> inputs = sum->product.inputs();
  inputs.push_back(sum->residual);
  graph::become({h},
                std::make_shared<QuantizedMatmul>(
                    h.primitive().stream(),
                    product.format(),
                    product.transpose(),
                    product.options(),
                    Epilogue{product.epilogue().bias, true}),
                inputs);
}

}  // namespace nibble::fusion
