// swiglu and gather_swiglu: the first half of a gated MLP.
#include <memory>

#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/nodes/swiglu_matmul.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

using enum SwigluMatmul::Input;

bool are_alike(const QuantizedArrays& gate,
               const QuantizedArrays& up,
               const ModeInfo& mode) {
  return gate.w.shape() == up.w.shape() &&
         gate.biases.has_value() == mode.stores_biases &&
         up.biases.has_value() == mode.stores_biases &&
         gate.scales.shape() == up.scales.shape();
}

// True if a kernel of ours computes both products on the stream's device.
bool decide(SwigluMatmul& node, const std::vector<mx::array>& inputs) {
  if (node.device() == mx::Device::cpu) {
    return true;
  }
  // A traced graph may be run with more rows, which have no fused kernel.
  bool traced = inputs[kX].is_tracer() ||
                (inputs.size() > kLhs && inputs[kLhs].is_tracer());
  return executor::is_available() && !traced &&
         decision::joins(node.launches(inputs), node.options());
}

}  // namespace

std::optional<mx::array> swiglu_node(std::shared_ptr<SwigluMatmul> node,
                                     std::vector<mx::array> inputs,
                                     mx::Dtype dtype) {
  if (!decide(*node, inputs)) {
    return std::nullopt;
  }
  return build(std::move(node), std::move(inputs), dtype);
}

std::optional<mx::array> swiglu_node(const mx::array& x,
                                     const QuantizedArrays& gate,
                                     const QuantizedArrays& up,
                                     const GatherIndices& indices,
                                     const QuantArgs& args,
                                     const MatmulOptions& options,
                                     mx::StreamOrDevice s) {
  if (!are_alike(gate, up, args.format().info())) {
    return std::nullopt;
  }
  mx::Stream stream = mx::to_stream(s);
  bool gathered = indices.any();
  const char* op = gathered ? "gather_swiglu" : "swiglu";
  auto request = normalise({.op = op,
                            .stream = stream,
                            .args = args,
                            .matrix = gate,
                            .up = &up,
                            .x = &x,
                            .gathered = gathered,
                            .options = &options});
  if (!request || request->is_empty()) {
    return std::nullopt;
  }
  auto& [format, dtype, inputs] = *request;
  if (gathered) {
    auto [lhs, rhs] = normalise(op, indices, x, gate.w, stream);
    inputs.insert(inputs.end(), {lhs, rhs});
  } else {
    align_batches(*request, stream);
  }
  if (request->is_empty()) {
    return std::nullopt;
  }
  auto y = swiglu_node(std::make_shared<SwigluMatmul>(
                           stream, format, gathered, indices.sorted, options),
                       std::move(inputs),
                       dtype);
  bool vector = x.ndim() == 1 && gate.w.ndim() > 2;
  return y && vector ? mx::squeeze(*y, -2, stream) : y;
}

mx::array swiglu(const mx::array& x,
                 const QuantizedArrays& gate,
                 const QuantizedArrays& up,
                 const GatherIndices& indices,
                 const QuantArgs& args,
                 const MatmulOptions& options,
                 mx::StreamOrDevice s) {
  auto y = swiglu_node(x, gate, up, indices, args, options, s);
  return y ? *y
           : composed_swiglu(
                 x, gate, up, indices, args, options, mx::to_stream(s));
}

}  // namespace nibble::ops
