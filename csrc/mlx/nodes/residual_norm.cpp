#include "csrc/mlx/nodes/residual_norm.h"

#include "csrc/core/error.h"
#include "csrc/cpu/layers.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/nodes/quantized_matmul.h"
#include "csrc/mlx/nodes/quantized_rows.h"

namespace nibble {

using bridge::QuantizedRows;
using bridge::RowContiguous;
using bridge::to_dtype;

using enum QuantizedMatmul::Input;

void ResidualNorm::eval_cpu(const std::vector<mx::array>& inputs,
                            std::vector<mx::array>& outputs) {
  mx::array &h = outputs[0], &normed = outputs[1];
  h.set_data(mx::allocator::malloc(h.nbytes()));
  normed.set_data(mx::allocator::malloc(normed.nbytes()));
  size_t residual = kBias + has_bias_;
  bool has_weight = inputs.size() > residual + 1;
  MatmulProblem problem = bridge::matmul_problem(
      inputs[kX], inputs[kW], inputs[kScales], format_, true);
  problem.epilogue = {has_bias_, true};
  tuning::consult(problem, options_, mx::Device::cpu);
  int N = h.shape(-1), rows = static_cast<int>(h.size() / N);
  cpu::RmsNorm norm{N,
                    eps_,
                    problem.dtype,
                    *to_dtype(inputs.back().dtype()),
                    *to_dtype(normed.dtype())};
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem,
                      plan = bridge::cpu_plan(problem, options_),
                      norm,
                      has_bias = has_bias_,
                      has_weight,
                      rows,
                      x = RowContiguous(inputs[kX]),
                      w = QuantizedRows(inputs, kW),
                      bias = RowContiguous(inputs[has_bias_ ? kBias : kX]),
                      residual = RowContiguous(inputs[residual]),
                      weight = RowContiguous(inputs.back()),
                      h = h.data<void>(),
                      y = normed.data<void>()]() mutable {
                       cpu::matmul(problem,
                                   plan,
                                   {w.operands(),
                                    x.data(),
                                    h,
                                    has_bias ? bias.data() : nullptr,
                                    residual.data()});
                       cpu::rms_norm(norm,
                                     {h, {1, 1, rows}, {0, 0, norm.D}},
                                     has_weight ? weight.data() : nullptr,
                                     y);
                     });
}

void ResidualNorm::eval_gpu(const std::vector<mx::array>&,
                            std::vector<mx::array>&) {
  fail(name(), "a graph built for the CPU must be run on it");
}

}  // namespace nibble
