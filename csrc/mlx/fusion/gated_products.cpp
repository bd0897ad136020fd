#include <memory>
#include <optional>

#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/nodes/gather_qmm.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "csrc/mlx/nodes/swiglu_matmul.h"
#include "csrc/mlx/ops.h"
#include "mlx/utils.h"

namespace nibble::fusion {
namespace {

bool is_same(const mx::array& a, const mx::array& b) {
  return a.id() == b.id();
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

// swiglu of the matrices that these two products have. Their inputs are checked
// already, and in the form of a node.
template <typename Product>
std::optional<mx::array> gated(const mx::array& gate,
                               const mx::array& up,
                               bool gathered,
                               bool sorted,
                               mx::StreamOrDevice s) {
  const auto &g = gate.inputs(), &u = up.inputs();
  const auto& product = static_cast<const Product&>(gate.primitive());
  std::vector<mx::array> inputs(g.begin(), g.begin() + Product::kBiases + 1);
  inputs.insert(
      inputs.end(), u.begin() + Product::kW, u.begin() + Product::kBiases + 1);
  inputs.insert(inputs.end(), g.begin() + Product::kBiases + 1, g.end());
  return ops::swiglu_node(std::make_shared<SwigluMatmul>(mx::to_stream(s),
                                                         product.format(),
                                                         gathered,
                                                         sorted,
                                                         product.options()),
                          std::move(inputs),
                          gate.dtype());
}

}  // namespace

std::optional<mx::array> gated_products(const mx::array& gate,
                                        const mx::array& up,
                                        mx::StreamOrDevice s) {
  if (are_gate_and_up<QuantizedMatmul>(gate, up)) {
    const auto& product = static_cast<const QuantizedMatmul&>(gate.primitive());
    return product.epilogue().any()
               ? std::nullopt
               : gated<QuantizedMatmul>(gate, up, false, false, s);
  }
  if (are_gate_and_up<GatherQmm>(gate, up) && choose_alike(gate, up)) {
    const auto& product = static_cast<const GatherQmm&>(gate.primitive());
    return gated<GatherQmm>(gate, up, true, product.sorted(), s);
  }
  return std::nullopt;
}

}  // namespace nibble::fusion
