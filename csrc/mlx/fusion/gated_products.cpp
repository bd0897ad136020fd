#include <optional>

#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/gather_qmm.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "csrc/mlx/ops.h"

namespace nibble::fusion {
namespace {

// The input of `a` if `a` is a copy of it for contiguity. On a GPU each product
// makes its own copy, so that this tells whether two have the same input.
const mx::array& source(const mx::array& a) {
  return graph::is_pending(a, "Contiguous") ? a.inputs()[0] : a;
}

bool is_same(const mx::array& a, const mx::array& b) {
  return source(a).id() == source(b).id();
}

// True if gate and up are pending products of this kind, of one x and with
// matrices of one shape and type.
template <typename Product>
bool are_gate_and_up(const mx::array& gate, const mx::array& up) {
  if (!graph::is_pending(gate, Product::kName) ||
      !graph::is_pending(up, Product::kName)) {
    return false;
  }
  const auto& product = static_cast<const Product&>(gate.primitive());
  const auto &g = gate.inputs(), &u = up.inputs();
  return product.transpose() && product.is_equivalent(up.primitive()) &&
         is_same(g[Product::kX], u[Product::kX]) &&
         g[Product::kW].shape() == u[Product::kW].shape() &&
         g[Product::kScales].dtype() == u[Product::kScales].dtype();
}

// True if two products of one x choose the same rows and matrices.
bool choose_alike(const mx::array& gate, const mx::array& up) {
  using enum GatherQmm::Input;
  auto in_turn = [](const mx::array& y) {
    return static_cast<const GatherQmm&>(y.primitive()).in_turn();
  };
  const auto &g = gate.inputs(), &u = up.inputs();
  return is_same(g[kRhs], u[kRhs]) &&
         (is_same(g[kLhs], u[kLhs]) || (in_turn(gate) && in_turn(up)));
}

// swiglu of the matrices that these two products have.
template <typename Product>
std::optional<mx::array> gated(const mx::array& gate,
                               const mx::array& up,
                               const ops::GatherIndices& indices,
                               mx::StreamOrDevice s) {
  const auto &g = gate.inputs(), &u = up.inputs();
  const auto& product = static_cast<const Product&>(gate.primitive());
  auto matrix = [&](const std::vector<mx::array>& inputs) {
    return ops::QuantizedArrays::of(product.format(),
                                    inputs[Product::kW],
                                    inputs[Product::kScales],
                                    inputs[Product::kBiases]);
  };
  return ops::swiglu_node(source(g[Product::kX]),
                          matrix(g),
                          matrix(u),
                          indices,
                          ops::QuantArgs::of(product.format()),
                          product.options(),
                          s);
}

}  // namespace

std::optional<mx::array> gated_products(const mx::array& gate,
                                        const mx::array& up,
                                        mx::StreamOrDevice s) {
  if (are_gate_and_up<QuantizedMatmul>(gate, up)) {
    const auto& product = static_cast<const QuantizedMatmul&>(gate.primitive());
    return product.epilogue().any() ? std::nullopt
                                    : gated<QuantizedMatmul>(gate, up, {}, s);
  }
  if (are_gate_and_up<GatherQmm>(gate, up) && choose_alike(gate, up)) {
    const auto& g = gate.inputs();
    const auto& product = static_cast<const GatherQmm&>(gate.primitive());
    return gated<GatherQmm>(
        gate,
        up,
        {g[GatherQmm::kLhs], g[GatherQmm::kRhs], product.sorted()},
        s);
  }
  return std::nullopt;
}

}  // namespace nibble::fusion
