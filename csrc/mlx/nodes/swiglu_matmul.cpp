#include "csrc/mlx/nodes/swiglu_matmul.h"

#include "csrc/core/planner.h"
#include "csrc/cpu/gather.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/nodes/quantized_rows.h"
#include "csrc/mlx/ops.h"
#include "mlx/allocator.h"

namespace nibble {

using bridge::QuantizedRows;
using bridge::RowContiguous;

mx::array composed_swiglu(const mx::array& x,
                          const ops::QuantizedArrays& gate,
                          const ops::QuantizedArrays& up,
                          const std::optional<mx::array>& lhs,
                          const std::optional<mx::array>& rhs,
                          const SwigluRequest& r,
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

MatmulProblem SwigluMatmul::dense_problem(
    const std::vector<mx::array>& inputs) {
  MatmulProblem p = bridge::matmul_problem(
      inputs[kX], inputs[kGate], inputs[kGate + 1], request_.format(), true);
  p.batch_invariant = request_.options.batch_invariant;
  tuning::consult(p, request_.options, stream().device);
  return p;
}

GatherProblem SwigluMatmul::gather_problem(
    const std::vector<mx::array>& inputs) const {
  return bridge::gather_problem(inputs[kX],
                                inputs[kGate],
                                inputs[kGate + 1],
                                inputs[kLhs],
                                request_.format(),
                                true,
                                request_.sorted,
                                request_.options.batch_invariant);
}

std::optional<std::vector<LaunchPlan>> SwigluMatmul::launches(
    const std::vector<mx::array>& inputs) {
  return gathered_ ? plan_swiglu(gather_problem(inputs))
                   : plan_swiglu(dense_problem(inputs));
}

mx::array SwigluMatmul::by_mlx(const std::vector<mx::array>& inputs) {
  auto arrays = [&](int i) {
    return ops::QuantizedArrays{inputs[i], inputs[i + 1], inputs[i + 2]};
  };
  auto index = [&](int i) {
    return gathered_ ? std::optional(inputs[i]) : std::nullopt;
  };
  return composed_swiglu(inputs[kX],
                         arrays(kGate),
                         arrays(kUp),
                         index(kLhs),
                         index(kRhs),
                         request_,
                         stream());
}

void SwigluMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  auto activations = bridge::activations(request_.options);
  RowContiguous x(inputs[kX]);
  QuantizedRows gate(inputs, kGate), up(inputs, kUp);
  void* y = out.data<void>();
  if (!gathered_) {
    cpu_task::dispatch(
        stream(),
        outputs,
        [problem = dense_problem(inputs),
         activations,
         x,
         gate,
         up,
         y]() mutable {
          cpu::swiglu_matmul(
              problem,
              {gate.operands(problem), up.operands(problem), x.data(), y},
              activations);
        });
    return;
  }
  cpu_task::dispatch(
      stream(),
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
            {gate.operands(problem), up.operands(problem), x.data(), y},
            {lhs.as<uint32_t>(), rhs.as<uint32_t>()},
            activations);
      });
}

void SwigluMatmul::eval_gpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  metal::Operands operands = evaluation::quantized_operands(inputs, kGate);
  operands.up_w = &inputs[kUp];
  operands.up_scales = &inputs[kUp + 1];
  operands.up_biases = &inputs[kUp + 2];
  operands.x = &inputs[kX];
  operands.lhs_indices = gathered_ ? &inputs[kLhs] : nullptr;
  operands.rhs_indices = gathered_ ? &inputs[kRhs] : nullptr;
  evaluation::run_on_gpu(
      "swiglu", launches(inputs), operands, outputs[0], stream());
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

}  // namespace nibble
