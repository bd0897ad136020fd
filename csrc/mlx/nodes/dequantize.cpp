#include "csrc/mlx/nodes/dequantize.h"

#include <optional>

#include "csrc/core/error.h"
#include "csrc/core/planner.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/nodes/quantized_rows.h"
#include "csrc/mlx/nodes/transforms.h"
#include "csrc/mlx/ops.h"
#include "mlx/ops.h"

namespace nibble {

DequantizeProblem Dequantize::problem(
    const std::vector<mx::array>& inputs) const {
  return bridge::dequantize_problem(
      inputs[kW], inputs[kScales], format_, dtype_);
}

void Dequantize::eval_cpu(const std::vector<mx::array>& inputs,
                          std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem = problem(inputs),
                      w = bridge::QuantizedRows(inputs, kW),
                      y = out.data<void>()]() mutable {
                       cpu::dequantize(
                           problem, plan_cpu(problem), w.operands(), y);
                     });
}

void Dequantize::eval_gpu(const std::vector<mx::array>& inputs,
                          std::vector<mx::array>& outputs) {
  if (evaluation::is_empty(outputs[0])) {
    return;
  }
  evaluation::run_on_gpu(
      "dequantize",
      plans::plan(problem(inputs), executor::device_profile(stream().device)),
      {Operand::kWeight, Operand::kScales, Operand::kBiases},
      inputs,
      outputs[0],
      stream());
}

std::vector<mx::array> Dequantize::jvp(const std::vector<mx::array>& primals,
                                       const std::vector<mx::array>& tangents,
                                       const std::vector<int>& argnums) {
  mx::array zeros = mx::zeros_like(primals[kScales], stream());
  std::optional<mx::array> d_scales, d_biases;
  for (size_t i = 0; i < argnums.size(); ++i) {
    require(argnums[i] != kW,
            "Dequantize::jvp",
            "the packed weights are integers: they have no tangent");
    (argnums[i] == kScales ? d_scales : d_biases) = tangents[i];
  }
  return {ops::dequantize(ops::QuantizedArrays::of(format_,
                                                   primals[kW],
                                                   d_scales.value_or(zeros),
                                                   d_biases.value_or(zeros)),
                          ops::QuantArgs::of(format_),
                          dtype_,
                          stream())};
}

std::vector<mx::array> Dequantize::vjp(const std::vector<mx::array>& primals,
                                       const std::vector<mx::array>& cotangents,
                                       const std::vector<int>& argnums,
                                       const std::vector<mx::array>&) {
  GroupGradients groups =
      group_gradients(mx::astype(cotangents[0], mx::float32, stream()),
                      primals[kW],
                      format_,
                      stream());
  std::vector<mx::array> gradients;
  for (int arg : argnums) {
    require(arg != kW,
            "Dequantize::vjp",
            "the packed weights are integers: they have no gradient");
    gradients.push_back(
        mx::astype(arg == kScales ? groups.scales : groups.biases,
                   primals[arg].dtype(),
                   stream()));
  }
  return gradients;
}

std::pair<std::vector<mx::array>, std::vector<int>> Dequantize::vmap(
    const std::vector<mx::array>& inputs, const std::vector<int>& axes) {
  int size = mapped_size(inputs, axes);
  auto mapped = [&](Input i) {
    return to_front(inputs[i], axes[i], size, stream());
  };
  mx::array w_hat = ops::dequantize(
      ops::QuantizedArrays::of(
          format_, mapped(kW), mapped(kScales), mapped(kBiases)),
      ops::QuantArgs::of(format_),
      dtype_,
      stream());
  return {{w_hat}, {0}};
}

bool Dequantize::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const Dequantize&>(other);
  return format_ == o.format_ && dtype_ == o.dtype_;
}

std::vector<mx::Shape> Dequantize::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[kW].shape();
  shape.back() = inputs[kScales].shape(-1) * format_.group_size;
  return {shape};
}

}  // namespace nibble
