// RMSNorm and SwiGLU as nodes of MLX's graph.
#include <memory>
#include <optional>

#include "csrc/cpu/layers.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fast_primitives.h"
#include "csrc/mlx/graph.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/primitives.h"
#include "csrc/mlx/residual_norm.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

namespace {

// Inputs of both kinds of product, and of the one that chooses.
enum ProductInput { kX, kW, kScales, kBiases, kLhs, kRhs };

// What `a` makes contiguous, where that is all it does: on a GPU, where each
// product asks for it, one array is the input of several.
const mx::array& source(const mx::array& a) {
  return graph::is_pending(a, "Contiguous") ? a.inputs()[0] : a;
}

bool is_same(const mx::array& a, const mx::array& b) {
  return source(a).id() == source(b).id();
}

// Whether gate and up are pending products of one kind, of one x and with
// matrices alike.
template <typename Product>
bool are_gate_and_up(const mx::array& gate, const mx::array& up) {
  if (!graph::is_pending(gate, Product::kName) ||
      !graph::is_pending(up, Product::kName)) {
    return false;
  }
  const auto& product = static_cast<const Product&>(gate.primitive());
  const auto &g = gate.inputs(), &u = up.inputs();
  return product.transpose() && product.is_equivalent(up.primitive()) &&
         is_same(g[kX], u[kX]) && g[kW].shape() == u[kW].shape() &&
         g[kScales].dtype() == u[kScales].dtype();
}

// Whether two products of one x choose the same rows and matrices.
bool choose_alike(const mx::array& gate, const mx::array& up) {
  auto in_turn = [](const mx::array& y) {
    return static_cast<const GatherQmm&>(y.primitive()).in_turn();
  };
  const auto &g = gate.inputs(), &u = up.inputs();
  return is_same(g[kRhs], u[kRhs]) &&
         (is_same(g[kLhs], u[kLhs]) || (in_turn(gate) && in_turn(up)));
}

}  // namespace

namespace fast {

mx::array rms_norm(const mx::array& x,
                   const std::optional<mx::array>& weight,
                   float eps,
                   mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  mx::Dtype dtype = weight ? mx::result_type(x, *weight) : x.dtype();
  bool fits =
      x.ndim() >= 1 && x.size() > 0 &&
      (!weight || (weight->ndim() == 1 && weight->shape(0) == x.shape(-1)));
  bool ours = stream.device == mx::Device::cpu && fits && to_dtype(x.dtype()) &&
              (!weight || to_dtype(weight->dtype()));
  if (!ours) {
    return mx::fast::rms_norm(x, weight, eps, s);
  }
  if (auto normed = fusion::residual_norm(x, weight, eps, stream)) {
    return *normed;
  }
  std::vector<mx::array> inputs = {x};
  if (weight) {
    inputs.push_back(*weight);
  }
  return mx::array(x.shape(),
                   dtype,
                   std::make_shared<RmsNormPrimitive>(stream, eps),
                   std::move(inputs));
}

std::optional<mx::array> gated_products(const mx::array& gate,
                                        const mx::array& up,
                                        mx::StreamOrDevice s_) {
  mx::Stream s = mx::to_stream(s_);
  if (are_gate_and_up<QuantizedMatmul>(gate, up)) {
    const auto &g = gate.inputs(), &u = up.inputs();
    const auto& product = static_cast<const QuantizedMatmul&>(gate.primitive());
    if (product.epilogue().any()) {
      return std::nullopt;
    }
    return ops::swiglu_node(source(g[kX]),
                            {g[kW], g[kScales], g[kBiases]},
                            {u[kW], u[kScales], u[kBiases]},
                            product.format().group_size,
                            product.format().bits,
                            "affine",
                            product.options(),
                            s);
  }
  if (are_gate_and_up<GatherQmm>(gate, up) && choose_alike(gate, up)) {
    const auto &g = gate.inputs(), &u = up.inputs();
    const auto& product = static_cast<const GatherQmm&>(gate.primitive());
    return ops::gather_swiglu_node(source(g[kX]),
                                   {g[kW], g[kScales], g[kBiases]},
                                   {u[kW], u[kScales], u[kBiases]},
                                   g[kLhs],
                                   g[kRhs],
                                   product.format().group_size,
                                   product.format().bits,
                                   "affine",
                                   product.sorted(),
                                   product.options(),
                                   s);
  }
  return std::nullopt;
}

mx::array swiglu(const mx::array& gate,
                 const mx::array& up,
                 mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  bool ours = stream.device == mx::Device::cpu && gate.shape() == up.shape() &&
              gate.dtype() == up.dtype() && to_dtype(gate.dtype()) &&
              gate.size() > 0;
  if (!ours) {
    return mx::multiply(
        mx::multiply(gate, mx::sigmoid(gate, stream), stream), up, stream);
  }
  if (auto y = gated_products(gate, up, stream)) {
    return *y;
  }
  return mx::array(gate.shape(),
                   gate.dtype(),
                   std::make_shared<SwigluPrimitive>(stream),
                   {gate, up});
}

}  // namespace fast

void RmsNormPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array& x = inputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  bool has_weight = inputs.size() > 1;
  cpu::RmsNorm problem{x.shape(-1),
                       options_,
                       *to_dtype(x.dtype()),
                       *to_dtype(inputs.back().dtype()),
                       *to_dtype(out.dtype())};
  cpu_task::dispatch(
      stream(),
      outputs,
      [problem,
       has_weight,
       rows = StridedRows(x),
       weight = RowContiguous(inputs.back()),
       y = out.data<void>()]() mutable {
        cpu::rms_norm(
            problem, rows.grid(), has_weight ? weight.data() : nullptr, y);
      });
}

std::vector<mx::Shape> RmsNormPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {inputs[0].shape()};
}

mx::array RmsNormPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  std::optional<mx::array> weight;
  if (inputs.size() > 1) {
    weight = inputs[1];
  }
  return mx::fast::rms_norm(inputs[0], weight, options_, stream());
}

void SwigluPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                               std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [dtype = *to_dtype(out.dtype()),
                      gate = RowContiguous(inputs[0]),
                      up = RowContiguous(inputs[1]),
                      count = out.size(),
                      y = out.data<void>()]() mutable {
                       cpu::swiglu(dtype, gate.data(), up.data(), count, y);
                     });
}

mx::array SwigluPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  const mx::array& gate = inputs[0];
  return mx::multiply(mx::multiply(gate, mx::sigmoid(gate, stream()), stream()),
                      inputs[1],
                      stream());
}

}  // namespace nibble
