#include "csrc/mlx/nodes/activation.h"

#include <cmath>
#include <optional>

#include "csrc/cpu/layers.h"
#include "csrc/cpu/recurrence.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/cpu_task.h"
#include "mlx/fast.h"
#include "mlx/ops.h"

namespace nibble {

using bridge::RowContiguous;
using bridge::StridedRows;
using bridge::to_dtype;

void ActivationPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                   std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu_task::dispatch(stream(),
                     outputs,
                     [options = options_,
                      dtype = *to_dtype(out.dtype()),
                      gated = inputs.size() > 1,
                      gate = RowContiguous(inputs[0]),
                      up = RowContiguous(inputs.back()),
                      count = out.size(),
                      y = out.data<void>()]() mutable {
                       const void* factor = gated ? up.data() : nullptr;
                       cpu::activate(
                           options, dtype, gate.data(), factor, count, y);
                     });
}

mx::array ActivationPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  mx::Stream s = stream();
  const mx::array& x = inputs[0];
  auto number = [&](double v) { return mx::array(float(v), x.dtype()); };
  auto times_sigmoid = [&](const mx::array& v, const mx::array& z) {
    return mx::multiply(v, mx::sigmoid(z, s), s);
  };
  mx::array y = x;
  switch (options_.kind) {
    case cpu::Activation::kSilu:
      y = times_sigmoid(x, x);
      break;
    case cpu::Activation::kGelu: {
      mx::array e = mx::erf(mx::multiply(x, number(std::sqrt(0.5)), s), s);
      y = mx::multiply(
          mx::multiply(x, mx::add(e, number(1), s), s), number(0.5), s);
      break;
    }
    case cpu::Activation::kGeluTanh: {
      mx::array cubic = mx::add(
          mx::multiply(mx::square(x, s), number(0.044715), s), number(1), s);
      mx::array z = mx::multiply(
          mx::multiply(x, cubic, s), number(2 * std::sqrt(2 / M_PI)), s);
      y = times_sigmoid(x, z);
      break;
    }
    case cpu::Activation::kGeluSigmoid:
      y = times_sigmoid(x, mx::multiply(number(1.702), x, s));
      break;
    case cpu::Activation::kReluSquared:
      y = mx::square(mx::maximum(x, number(0), s), s);
      break;
    case cpu::Activation::kTanh:
      y = mx::tanh(x, s);
      break;
    case cpu::Activation::kSigmoid:
      y = mx::sigmoid(x, s);
      break;
    case cpu::Activation::kClipped: {
      mx::array least = mx::minimum(x, number(options_.limit), s);
      mx::array z = mx::multiply(number(options_.alpha), least, s);
      y = times_sigmoid(least, z);
      break;
    }
  }
  if (inputs.size() == 1) {
    return y;
  }
  mx::array up = inputs[1];
  if (options_.kind == cpu::Activation::kClipped) {
    up = mx::add(
        mx::clip(up, number(-options_.limit), number(options_.limit), s),
        number(1),
        s);
  }
  return mx::multiply(y, up, s);
}

void LayerNormPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                  std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array& x = inputs[0];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  const mx::array& weight = inputs[options_.has_weight ? 1 : 0];
  cpu::LayerNorm problem{x.shape(-1),
                         options_.eps,
                         *to_dtype(x.dtype()),
                         *to_dtype(weight.dtype()),
                         *to_dtype(inputs.back().dtype()),
                         *to_dtype(out.dtype())};
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem,
                      options = options_,
                      rows = StridedRows(x),
                      weight = RowContiguous(weight),
                      bias = RowContiguous(inputs.back()),
                      y = out.data<void>()]() mutable {
                       cpu::layer_norm(
                           problem,
                           rows.grid(),
                           options.has_weight ? weight.data() : nullptr,
                           options.has_bias ? bias.data() : nullptr,
                           y);
                     });
}

mx::array LayerNormPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  std::optional<mx::array> weight, bias;
  if (options_.has_weight) {
    weight = inputs[1];
  }
  if (options_.has_bias) {
    bias = inputs.back();
  }
  return mx::fast::layer_norm(inputs[0], weight, bias, options_.eps, stream());
}

void ConvolutionPrimitive::eval_cpu(const std::vector<mx::array>& inputs,
                                    std::vector<mx::array>& outputs) {
  mx::array& out = outputs[0];
  const mx::array& w = inputs[1];
  out.set_data(mx::allocator::malloc(out.nbytes()));
  cpu::DepthwiseConvolution problem{*to_dtype(out.dtype()),
                                    out.shape(0),
                                    out.shape(1),
                                    out.shape(2),
                                    w.shape(1),
                                    options_.silu,
                                    nullptr,
                                    nullptr,
                                    nullptr,
                                    out.data<void>()};
  cpu_task::dispatch(stream(),
                     outputs,
                     [problem,
                      x = RowContiguous(inputs[0]),
                      w = RowContiguous(w),
                      count = int(w.size()),
                      dtype = *to_dtype(w.dtype())]() mutable {
                       std::vector<float> floats =
                           cpu::as_floats(dtype, w.data(), count);
                       problem.x = x.data();
                       problem.w = floats.data();
                       cpu::convolve(problem);
                     });
}

std::vector<mx::Shape> ConvolutionPrimitive::output_shapes(
    const std::vector<mx::array>& inputs) {
  mx::Shape shape = inputs[0].shape();
  shape[1] -= inputs[1].shape(1) - 1;
  return {shape};
}

mx::array ConvolutionPrimitive::by_mlx(const std::vector<mx::array>& inputs) {
  mx::Stream s = stream();
  int channels = inputs[0].shape(-1);
  mx::array y = mx::conv1d(inputs[0], inputs[1], 1, 0, 1, channels, s);
  return options_.silu ? mx::multiply(y, mx::sigmoid(y, s), s) : y;
}

}  // namespace nibble
