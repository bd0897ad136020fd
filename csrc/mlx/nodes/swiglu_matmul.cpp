#include "csrc/mlx/nodes/swiglu_matmul.h"

#include "csrc/core/planner.h"
#include "csrc/cpu/gather.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/nodes/quantized_rows.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "mlx/allocator.h"

namespace nibble {

using bridge::QuantizedRows;
using bridge::RowContiguous;

mx::array composed_swiglu(const mx::array& x,
                          const ops::QuantizedArrays& gate,
                          const ops::QuantizedArrays& up,
                          const ops::GatherIndices& indices,
                          const ops::QuantArgs& args,
                          const ops::MatmulOptions& options,
                          const mx::Stream& s) {
  auto product = [&](const ops::QuantizedArrays& q) {
    return ops::gather_qmm(x, q, indices, true, args, options, s);
  };
  mx::array g = product(gate);
  // MLX's activations of no elements divide by zero on CUDA.
  return g.size() == 0 ? g : fast::swiglu(g, product(up), s);
}

MatmulProblem SwigluMatmul::dense_problem(
    const std::vector<mx::array>& inputs) {
  MatmulProblem p = bridge::matmul_problem(
      inputs[kX], inputs[kGate], inputs[kGate + 1], format_, true);
  tuning::consult(p, options_, stream().device);
  return p;
}

GatherProblem SwigluMatmul::gather_problem(
    const std::vector<mx::array>& inputs) const {
  return bridge::gather_problem(inputs[kX],
                                inputs[kGate],
                                inputs[kGate + 1],
                                inputs[kLhs],
                                format_,
                                true,
                                sorted_,
                                options_.batch_invariant);
}

plans::Plan SwigluMatmul::launches(const std::vector<mx::array>& inputs) {
  DeviceProfile device = executor::device_profile(stream().device);
  return gathered_ ? plans::plan_swiglu(gather_problem(inputs), device)
                   : plans::plan_swiglu(dense_problem(inputs), device);
}

mx::array SwigluMatmul::by_mlx(const std::vector<mx::array>& given) {
  auto inputs = repack::unpacked(repack::unpacked(given, kGate), kUp);
  auto matrix = [&](int i) {
    return ops::QuantizedArrays::of(
        format_, inputs[i], inputs[i + 1], inputs[i + 2]);
  };
  ops::GatherIndices indices;
  if (gathered_) {
    indices = {inputs[kLhs], inputs[kRhs], sorted_};
  }
  return composed_swiglu(inputs[kX],
                         matrix(kGate),
                         matrix(kUp),
                         indices,
                         ops::QuantArgs::of(format_),
                         options_,
                         stream());
}

void SwigluMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  RowContiguous x(inputs[kX]);
  QuantizedRows gate(inputs, kGate), up(inputs, kUp);
  void* y = out.data<void>();
  if (!gathered_) {
    MatmulProblem p = dense_problem(inputs);
    cpu_task::dispatch(
        stream(),
        outputs,
        [p, plan = bridge::cpu_plan(p, options_), x, gate, up, y]() mutable {
          cpu::swiglu_matmul(
              p, plan, {gate.operands(), up.operands(), x.data(), y});
        });
    return;
  }
  GatherProblem p = gather_problem(inputs);
  cpu_task::dispatch(stream(),
                     outputs,
                     [p,
                      plan = bridge::cpu_plan(p, options_),
                      x,
                      gate,
                      up,
                      lhs = RowContiguous(inputs[kLhs]),
                      rhs = RowContiguous(inputs[kRhs]),
                      y]() mutable {
                       cpu::gather_swiglu(
                           p,
                           plan,
                           {gate.operands(), up.operands(), x.data(), y},
                           {lhs.as<uint32_t>(), rhs.as<uint32_t>()});
                     });
}

void SwigluMatmul::eval_gpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  if (evaluation::is_empty(outputs[0])) {
    return;
  }
  std::vector<Operand> operands{Operand::kX,
                                Operand::kWeight,
                                Operand::kScales,
                                Operand::kBiases,
                                Operand::kUpWeight,
                                Operand::kUpScales,
                                Operand::kUpBiases};
  if (gathered_) {
    operands.insert(operands.end(),
                    {Operand::kLhsIndices, Operand::kRhsIndices});
  }
  evaluation::run_on_gpu(
      "swiglu", launches(inputs), operands, inputs, outputs[0], stream());
}

bool SwigluMatmul::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const SwigluMatmul&>(other);
  return format_ == o.format_ && gathered_ == o.gathered_ &&
         sorted_ == o.sorted_ && options_ == o.options_;
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
