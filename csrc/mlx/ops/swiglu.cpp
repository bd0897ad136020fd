// swiglu and gather_swiglu: the first half of a gated MLP.
#include <memory>
#include <optional>

#include "csrc/metal/encoder.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/self_check.h"
#include "csrc/mlx/nodes/swiglu_matmul.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

using Request = SwigluRequest;
using enum SwigluMatmul::Input;

Request make_request(const ops::QuantizedArrays& gate,
                     const ops::QuantizedArrays& up,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     bool sorted,
                     ops::MatmulOptions options) {
  Request r{group_size, bits, mode, sorted, options};
  auto symmetric = [&](const ops::QuantizedArrays& q) {
    return !ops::recognised(r.format(), q.scales, q.biases, options)
                .has_biases();
  };
  r.options.symmetric = symmetric(gate) && symmetric(up);
  return r;
}

// Whether one node may hold these: two matrices of one shape and of types that
// our kernels compute in, and something to compute.
bool fusible(const mx::array& x,
             const ops::QuantizedArrays& gate,
             const ops::QuantizedArrays& up,
             const Request& r) {
  bool alike = gate.w.shape() == up.w.shape() && gate.biases && up.biases &&
               gate.scales.shape() == up.scales.shape();
  if (r.mode != "affine" || !supported(r.format()) || !alike) {
    return false;
  }
  mx::Dtype scale_dtype =
      mx::result_type({gate.scales, *gate.biases, up.scales, *up.biases});
  return bridge::to_dtype(ops::result_dtype(x, gate.scales)) &&
         bridge::to_dtype(scale_dtype) && x.size() > 0 && gate.w.size() > 0;
}

// A node of these inputs; nullopt if none of our kernels is for it.
std::optional<mx::array> node(std::vector<mx::array> inputs,
                              const Request& request,
                              bool gathered,
                              const mx::Stream& s) {
  auto primitive = std::make_shared<SwigluMatmul>(s, request, gathered);
  if (s.device == mx::Device::gpu) {
    // A traced graph may be run for more rows, which have no fused kernel.
    if (!metal::is_available() || inputs[kX].is_tracer() ||
        (gathered && inputs[kLhs].is_tracer())) {
      return std::nullopt;
    }
    auto launches = primitive->launches(inputs);
    if (!launches || !self_check::trusted(*launches)) {
      return std::nullopt;
    }
  }
  mx::Shape shape = primitive->output_shapes(inputs)[0];
  mx::Dtype dtype = inputs[kX].dtype();
  return mx::array(std::move(shape),
                   dtype,
                   std::move(primitive),
                   ops::contiguous(std::move(inputs), s));
}

// Checks gate and up against x, and brings all to the types of the node.
std::vector<mx::array> node_inputs(const char* op,
                                   const mx::array& x,
                                   const ops::QuantizedArrays& gate,
                                   const ops::QuantizedArrays& up,
                                   const QuantFormat& format,
                                   const mx::Stream& s) {
  mx::Dtype scale_dtype =
      mx::result_type({gate.scales, *gate.biases, up.scales, *up.biases});
  std::vector<mx::array> inputs{
      mx::astype(x, ops::result_dtype(x, gate.scales), s)};
  for (const ops::QuantizedArrays* q : {&gate, &up}) {
    ops::check_weights(op, q->w, q->scales, q->biases, format);
    inputs.push_back(q->w);
    inputs.push_back(mx::astype(q->scales, scale_dtype, s));
    inputs.push_back(mx::astype(*q->biases, scale_dtype, s));
  }
  int K = gate.scales.shape(-1) * format.group_size;
  ops::check_activations(op, x, gate.w, K, true);
  return inputs;
}

}  // namespace

namespace ops {

std::optional<mx::array> swiglu_node(const mx::array& x,
                                     const QuantizedArrays& gate,
                                     const QuantizedArrays& up,
                                     std::optional<int> group_size,
                                     std::optional<int> bits,
                                     const std::string& mode,
                                     const MatmulOptions& options,
                                     mx::StreamOrDevice s_) {
  mx::Stream s = mx::to_stream(s_);
  Request request =
      make_request(gate, up, group_size, bits, mode, false, options);
  if (!fusible(x, gate, up, request)) {
    return std::nullopt;
  }
  auto inputs = node_inputs("swiglu", x, gate, up, request.format(), s);
  bool vector = x.ndim() == 1 && gate.w.ndim() > 2;
  auto matrix = [&](int i) {
    return Quantized{inputs[i], inputs[i + 1], inputs[i + 2]};
  };
  Aligned a = align_batches({inputs[kX], {matrix(kGate), matrix(kUp)}}, s);
  inputs = {a.x};
  for (const Quantized& q : a.weights) {
    inputs.insert(inputs.end(), {q.w, q.scales, q.biases});
  }
  auto y = node(std::move(inputs), request, false, s);
  return y && vector ? mx::squeeze(*y, -2, s) : y;
}

mx::array swiglu(const mx::array& x,
                 const QuantizedArrays& gate,
                 const QuantizedArrays& up,
                 std::optional<int> group_size,
                 std::optional<int> bits,
                 const std::string& mode,
                 const MatmulOptions& options,
                 mx::StreamOrDevice s) {
  auto y = swiglu_node(x, gate, up, group_size, bits, mode, options, s);
  return y ? *y
           : composed_swiglu(
                 x,
                 gate,
                 up,
                 std::nullopt,
                 std::nullopt,
                 make_request(gate, up, group_size, bits, mode, false, options),
                 mx::to_stream(s));
}

std::optional<mx::array> gather_swiglu_node(
    const mx::array& x,
    const QuantizedArrays& gate,
    const QuantizedArrays& up,
    const std::optional<mx::array>& lhs_indices,
    const std::optional<mx::array>& rhs_indices,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool sorted_indices,
    const MatmulOptions& options,
    mx::StreamOrDevice s_) {
  mx::Stream s = mx::to_stream(s_);
  if (!lhs_indices && !rhs_indices) {
    return swiglu_node(x, gate, up, group_size, bits, mode, options, s);
  }
  Request request =
      make_request(gate, up, group_size, bits, mode, sorted_indices, options);
  if (!fusible(x, gate, up, request) || x.ndim() < 2) {
    return std::nullopt;
  }
  auto inputs = node_inputs("gather_swiglu", x, gate, up, request.format(), s);
  auto [lhs, rhs] =
      gather_indices("gather_swiglu", x, gate.w, lhs_indices, rhs_indices, s);
  if (lhs.size() == 0) {
    return std::nullopt;
  }
  inputs.insert(inputs.end(), {lhs, rhs});
  return node(std::move(inputs), request, true, s);
}

mx::array gather_swiglu(const mx::array& x,
                        const QuantizedArrays& gate,
                        const QuantizedArrays& up,
                        const std::optional<mx::array>& lhs_indices,
                        const std::optional<mx::array>& rhs_indices,
                        std::optional<int> group_size,
                        std::optional<int> bits,
                        const std::string& mode,
                        bool sorted_indices,
                        const MatmulOptions& options,
                        mx::StreamOrDevice s) {
  auto y = gather_swiglu_node(x,
                              gate,
                              up,
                              lhs_indices,
                              rhs_indices,
                              group_size,
                              bits,
                              mode,
                              sorted_indices,
                              options,
                              s);
  return y ? *y
           : composed_swiglu(
                 x,
                 gate,
                 up,
                 lhs_indices,
                 rhs_indices,
                 make_request(
                     gate, up, group_size, bits, mode, sorted_indices, options),
                 mx::to_stream(s));
}

}  // namespace ops
}  // namespace nibble
