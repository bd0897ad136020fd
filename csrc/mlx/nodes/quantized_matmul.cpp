#include "csrc/mlx/nodes/quantized_matmul.h"

#include <optional>

#include "csrc/core/error.h"
#include "csrc/core/planner.h"
#include "csrc/cpu/matmul.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "csrc/mlx/executor.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/nodes/evaluation.h"
#include "csrc/mlx/nodes/group_gradient.h"
#include "csrc/mlx/nodes/quantized_rows.h"
#include "csrc/mlx/nodes/transforms.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::QuantizedRows;
using bridge::RowContiguous;

void QuantizedMatmul::eval_cpu(const std::vector<mx::array>& inputs,
                               std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  MatmulProblem p = problem(inputs);
  auto addend = [&](int input) {
    return input < 0 ? std::nullopt
                     : std::optional(RowContiguous(inputs[input]));
  };
  cpu_task::dispatch(stream(),
                     outputs,
                     [p,
                      plan = bridge::cpu_plan(p, options_),
                      x = RowContiguous(inputs[kX]),
                      w = QuantizedRows(inputs, kW),
                      bias = addend(bias_input()),
                      residual = addend(residual_input()),
                      y = out.data<void>()]() mutable {
                       cpu::matmul(p,
                                   plan,
                                   {w.operands(),
                                    x.data(),
                                    y,
                                    bias ? bias->data() : nullptr,
                                    residual ? residual->data() : nullptr});
                     });
}

void QuantizedMatmul::eval_gpu(const std::vector<mx::array>& inputs,
                               std::vector<mx::array>& outputs) {
  if (evaluation::is_empty(outputs[0])) {
    return;
  }
  if (joint_ && joint_->compute(*this, inputs[kX], outputs[0])) {
    return;
  }
  std::vector<Operand> operands{
      Operand::kX, Operand::kWeight, Operand::kScales, Operand::kBiases};
  if (epilogue_.bias) {
    operands.push_back(Operand::kBias);
  }
  if (epilogue_.residual) {
    operands.push_back(Operand::kResidual);
  }
  evaluation::run_on_gpu(
      "quantized_matmul",
      plans::plan(problem(inputs), executor::device_profile(stream().device)),
      operands,
      inputs,
      outputs[0],
      stream());
}

MatmulProblem QuantizedMatmul::problem(const std::vector<mx::array>& inputs) {
  MatmulProblem p = bridge::matmul_problem(
      inputs[kX], inputs[kW], inputs[kScales], format_, transpose_);
  p.half_tiles = options_.half_tiles;
  p.epilogue = epilogue_;
  tuning::consult(p, options_, stream().device);
  return p;
}

mx::array QuantizedMatmul::apply(const mx::array& x,
                                 const Matrix& matrix,
                                 bool transpose,
                                 const ops::MatmulOptions& options,
                                 const ops::Addends& addends) {
  return ops::quantized_matmul(
      x,
      ops::QuantizedArrays::of(format_, matrix.w, matrix.scales, matrix.biases),
      transpose,
      ops::QuantArgs::of(format_),
      options,
      addends,
      stream());
}

std::vector<mx::array> QuantizedMatmul::jvp(
    const std::vector<mx::array>& inputs,
    const std::vector<mx::array>& tangents,
    const std::vector<int>& argnums) {
  std::vector<mx::array> primals = repack::unpacked(inputs, kW);
  // y is linear in x, linear in (scales, biases) together, and in the addends.
  const mx::array &x = primals[kX], &w = primals[kW];
  std::optional<mx::array> sum;
  auto add = [&](const mx::array& term) {
    sum = sum ? mx::add(*sum, term, stream()) : term;
  };
  std::optional<mx::array> d_scales, d_biases;
  for (size_t i = 0; i < argnums.size(); ++i) {
    const mx::array& t = tangents[i];
    switch (argnums[i]) {
      case kX:
        add(apply(
            t, {w, primals[kScales], primals[kBiases]}, transpose_, options_));
        break;
      case kScales:
        d_scales = t;
        break;
      case kBiases:
        d_biases = t;
        break;
      case kW:
        fail("QuantizedMatmul::jvp",
             "the packed weights are integers: they have no tangent");
      default:
        add(mx::broadcast_to(t, output_shapes(primals)[0], stream()));
    }
  }
  if (d_scales || d_biases) {
    mx::array zeros = mx::zeros_like(primals[kScales], stream());
    ops::MatmulOptions general = options_;
    general.symmetric = false;  // the tangents may be any
    add(apply(x,
              {w, d_scales.value_or(zeros), d_biases.value_or(zeros)},
              transpose_,
              general));
  }
  return {*sum};
}

std::vector<mx::array> QuantizedMatmul::vjp(
    const std::vector<mx::array>& inputs,
    const std::vector<mx::array>& cotangents,
    const std::vector<int>& argnums,
    const std::vector<mx::array>&) {
  std::vector<mx::array> primals = repack::unpacked(inputs, kW);
  const mx::array &x = primals[kX], &w = primals[kW];
  const mx::array &scales = primals[kScales], &biases = primals[kBiases];
  const mx::array& dy = cotangents[0];

  std::optional<GroupGradients> groups;
  auto group_gradient = [&]() -> const GroupGradients& {
    if (!groups) {
      groups =
          GroupGradient::of({x, dy, w}, {format_, transpose_, false}, stream());
    }
    return *groups;
  };

  std::vector<mx::array> gradients;
  for (int arg : argnums) {
    switch (arg) {
      case kX:
        gradients.push_back(
            apply(dy, {w, scales, biases}, !transpose_, options_));
        break;
      case kScales:
        gradients.push_back(
            mx::astype(group_gradient().scales, scales.dtype(), stream()));
        break;
      case kBiases:
        gradients.push_back(
            mx::astype(group_gradient().biases, biases.dtype(), stream()));
        break;
      case kW:
        fail("QuantizedMatmul::vjp",
             "the packed weights are integers: they have no gradient");
      default:
        // In float32: the gradient of a bias is a sum over all rows.
        gradients.push_back(
            arg == residual_input()
                ? dy
                : mx::astype(sum_to(mx::astype(dy, mx::float32, stream()),
                                    primals[arg].shape(),
                                    stream()),
                             dy.dtype(),
                             stream()));
    }
  }
  return gradients;
}

std::pair<std::vector<mx::array>, std::vector<int>> QuantizedMatmul::vmap(
    const std::vector<mx::array>& given, const std::vector<int>& axes) {
  std::vector<mx::array> inputs = repack::unpacked(given, kW);
  const mx::Stream& s = stream();
  int size = mapped_size(inputs, axes);
  auto mapped = [&](int i) { return to_front(inputs[i], axes[i], size, s); };
  bool weights_mapped =
      axes[kW] >= 0 || axes[kScales] >= 0 || axes[kBiases] >= 0;
  mx::array x = mapped(kX);
  // x [V, in] is one row for each element. Mapped weights make it a matrix.
  bool vector = weights_mapped && x.ndim() == 2;
  auto as_rows = [&](const mx::array& a) {
    return vector ? mx::expand_dims(a, 1, s) : a;
  };
  x = as_rows(x);
  auto weights = [&](Input i) {
    return weights_mapped ? pad_batch(mapped(i), x.ndim(), s) : inputs[i];
  };
  ops::Addends addends;
  if (epilogue_.residual) {
    addends.residual = as_rows(mapped(residual_input()));
  }
  if (epilogue_.bias && axes[bias_input()] < 0) {
    addends.bias = inputs[bias_input()];
  } else if (epilogue_.bias) {
    // One bias for each mapped element becomes a residual of equal rows.
    mx::Shape shape = x.shape();
    mx::array rows = pad_batch(mapped(bias_input()), shape.size(), s);
    shape.back() = rows.shape(-1);
    addends.residual = addends.residual ? mx::add(*addends.residual, rows, s)
                                        : mx::broadcast_to(rows, shape, s);
  }
  mx::array y = apply(x,
                      {weights(kW), weights(kScales), weights(kBiases)},
                      transpose_,
                      options_,
                      addends);
  return {{vector ? mx::squeeze(y, 1, s) : y}, {0}};
}

bool QuantizedMatmul::is_equivalent(const mx::Primitive& other) const {
  const auto& o = static_cast<const QuantizedMatmul&>(other);
  return format_ == o.format_ && transpose_ == o.transpose_ &&
         options_ == o.options_ && epilogue_ == o.epilogue_;
}

std::vector<mx::Shape> QuantizedMatmul::output_shapes(
    const std::vector<mx::array>& inputs) {
  return {output_shape(inputs)};
}

mx::Shape QuantizedMatmul::output_shape(
    const std::vector<mx::array>& inputs) const {
  mx::Shape shape = inputs[kX].shape();
  shape.back() = transpose_ ? inputs[kW].shape(-2)
                            : inputs[kScales].shape(-1) * format_.group_size;
  return shape;
}

}  // namespace nibble
