// swiglu and gather_swiglu: the first half of a gated MLP, operation and node.
#include <memory>
#include <optional>

#include "csrc/core/error.h"
#include "csrc/cpu/gather.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fast_primitives.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/tuning.h"
#include "csrc/mlx/validate.h"
#include "mlx/ops.h"

namespace nibble {
namespace {

using bridge::QuantizedRows;
using bridge::RowContiguous;

enum Input {
  kX,
  kGate,  // three arrays each
  kUp = kGate + 3,
  kLhs = kUp + 3,  // if gathered
  kRhs,
};

// What a caller asks for beside the arrays.
struct Request {
  std::optional<int> group_size, bits;
  std::string mode;
  bool sorted;
  ops::MatmulOptions options;

  QuantFormat format() const {
    return {bits.value_or(4), group_size.value_or(64), options.symmetric};
  }
  bool operator==(const Request&) const = default;
};

Request make_request(const ops::QuantizedArrays& gate,
                     const ops::QuantizedArrays& up,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     bool sorted,
                     ops::MatmulOptions options) {
  Request r{group_size, bits, mode, sorted, options};
  auto symmetric = [&](const ops::QuantizedArrays& q) {
    return ops::recognised(r.format(), q.scales, q.biases, options).symmetric;
  };
  r.options.symmetric = symmetric(gate) && symmetric(up);
  return r;
}

// Two products and the activation between them.
mx::array composed(const mx::array& x,
                   const ops::QuantizedArrays& gate,
                   const ops::QuantizedArrays& up,
                   const std::optional<mx::array>& lhs,
                   const std::optional<mx::array>& rhs,
                   const Request& r,
                   const mx::Stream& s) {
  auto product = [&](const ops::QuantizedArrays& q) {
    if (!lhs && !rhs) {
      return ops::quantized_matmul(x,
                                   q.w,
                                   q.scales,
                                   q.biases,
                                   true,
                                   r.group_size,
                                   r.bits,
                                   r.mode,
                                   r.options,
                                   {},
                                   s);
    }
    return ops::gather_qmm(x,
                           q.w,
                           q.scales,
                           q.biases,
                           lhs,
                           rhs,
                           true,
                           r.group_size,
                           r.bits,
                           r.mode,
                           std::nullopt,
                           r.sorted,
                           r.options,
                           s);
  };
  return fast::swiglu(product(gate), product(up), s);
}

// Inputs {x, w, scales and biases of gate, those of up}, as QuantizedMatmul
// takes them, or {..., lhs, rhs} as GatherQmm does.
class SwigluMatmul : public FastPrimitive {
 public:
  SwigluMatmul(mx::Stream stream, Request request, bool gathered)
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

  MatmulProblem dense_problem(const std::vector<mx::array>& inputs) {
    MatmulProblem p = bridge::matmul_problem(
        inputs[kX], inputs[kGate], inputs[kGate + 1], request_.format(), true);
    p.batch_invariant = request_.options.batch_invariant;
    tuning::consult(p, request_.options, stream().device);
    return p;
  }
  GatherProblem gather_problem(const std::vector<mx::array>& inputs) const {
    return bridge::gather_problem(inputs[kX],
                                  inputs[kGate],
                                  inputs[kGate + 1],
                                  inputs[kLhs],
                                  request_.format(),
                                  true,
                                  request_.sorted,
                                  request_.options.batch_invariant);
  }
  std::optional<std::vector<LaunchPlan>> launches(
      const std::vector<mx::array>& inputs) {
    return gathered_ ? plan_swiglu(gather_problem(inputs))
                     : plan_swiglu(dense_problem(inputs));
  }

 protected:
  mx::array by_mlx(const std::vector<mx::array>& inputs) override {
    auto arrays = [&](int i) {
      return ops::QuantizedArrays{inputs[i], inputs[i + 1], inputs[i + 2]};
    };
    auto index = [&](int i) {
      return gathered_ ? std::optional(inputs[i]) : std::nullopt;
    };
    return composed(inputs[kX],
                    arrays(kGate),
                    arrays(kUp),
                    index(kLhs),
                    index(kRhs),
                    request_,
                    stream());
  }

 private:
  Request request_;
  bool gathered_;
};

void SwigluMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  auto activations = bridge::activations(request_.options);
  RowContiguous x(inputs[kX]);
  QuantizedRows gate(inputs, kGate), up(inputs, kUp);
  void* y = out.data<void>();
  if (!gathered_) {
    cpu_task::dispatch(stream(),
                       outputs,
                       [problem = dense_problem(inputs),
                        activations,
                        x,
                        gate,
                        up,
                        y]() mutable {
                         cpu::swiglu_matmul(
                             problem,
                             {gate.operands(), up.operands(), x.data(), y},
                             activations);
                       });
    return;
  }
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem = gather_problem(inputs),
                      activations,
                      x,
                      gate,
                      up,
                      lhs = RowContiguous(inputs[kLhs]),
                      rhs = RowContiguous(inputs[kRhs]),
                      y]() mutable {
                       cpu::gather_swiglu(
                           problem,
                           {gate.operands(), up.operands(), x.data(), y},
                           {lhs.as<uint32_t>(), rhs.as<uint32_t>()},
                           activations);
                     });
}

void SwigluMatmul::eval_gpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  auto planned = launches(inputs);
  require(planned.has_value(),
          "swiglu",
          "a graph built for this device must be run on it");
  metal::Operands operands;
  operands.w = &inputs[kGate];
  operands.scales = &inputs[kGate + 1];
  operands.biases = &inputs[kGate + 2];
  operands.up_w = &inputs[kUp];
  operands.up_scales = &inputs[kUp + 1];
  operands.up_biases = &inputs[kUp + 2];
  operands.x = &inputs[kX];
  operands.lhs_indices = gathered_ ? &inputs[kLhs] : nullptr;
  operands.rhs_indices = gathered_ ? &inputs[kRhs] : nullptr;
  operands.out = &out;
  metal::encode(*planned, operands, stream());
}

std::vector<mx::Shape> SwigluMatmul::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = gathered_ ? inputs[kLhs].shape()
                              : bridge::batch_shape(inputs[kX].shape(), 1);
  if (gathered_) {
    shape.push_back(inputs[kX].shape(-2));
  }
  shape.push_back(inputs[kGate].shape(-2));
  return {shape};
}

// Whether one node may hold these: two matrices of one shape and of types that
// our kernels compute in, and something to compute.
bool fusible(const mx::array& x,
             const ops::QuantizedArrays& gate,
             const ops::QuantizedArrays& up,
             const Request& r) {
  bool alike = gate.w.shape() == up.w.shape() && gate.biases && up.biases &&
               gate.scales.shape() == up.scales.shape();
  if (r.mode != "affine" || !held(r.format()) || !alike) {
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

mx::array swiglu(const mx::array& x,
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
  if (fusible(x, gate, up, request)) {
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
    if (auto y = node(std::move(inputs), request, false, s)) {
      return vector ? mx::squeeze(*y, -2, s) : *y;
    }
  }
  return composed(x, gate, up, std::nullopt, std::nullopt, request, s);
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
                        mx::StreamOrDevice s_) {
  mx::Stream s = mx::to_stream(s_);
  if (!lhs_indices && !rhs_indices) {
    return swiglu(x, gate, up, group_size, bits, mode, options, s);
  }
  Request request =
      make_request(gate, up, group_size, bits, mode, sorted_indices, options);
  if (fusible(x, gate, up, request) && x.ndim() >= 2) {
    auto inputs =
        node_inputs("gather_swiglu", x, gate, up, request.format(), s);
    auto [lhs, rhs] =
        gather_indices("gather_swiglu", x, gate.w, lhs_indices, rhs_indices, s);
    if (lhs.size() > 0) {
      inputs.insert(inputs.end(), {lhs, rhs});
      if (auto y = node(std::move(inputs), request, true, s)) {
        return *y;
      }
    }
  }
  return composed(x, gate, up, lhs_indices, rhs_indices, request, s);
}

}  // namespace ops
}  // namespace nibble
