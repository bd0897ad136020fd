#include "csrc/mlx/nodes/quantized_matmul.h"

#include <memory>

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/tuning.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kMatmul = "quantized_matmul";

// Throws unless the addends fit y of this shape.
void check_addends(const Addends& addends, const mx::Shape& y) {
  if (addends.bias) {
    const mx::Shape& shape = addends.bias->shape();
    require(shape == mx::Shape{y.back()},
            kMatmul,
            "bias of shape ",
            text(mx::Shape{y.back()}),
            " is required but it has the shape ",
            text(shape));
  }
  if (addends.residual) {
    const mx::Shape& shape = addends.residual->shape();
    require(shape == y,
            kMatmul,
            "residual must have the shape of the result, ",
            text(y),
            ", but has the shape ",
            text(shape));
  }
}

// y + bias + residual, where no kernel adds them.
mx::array add(mx::array y, const Addends& addends, const mx::Stream& stream) {
  for (const auto& addend : {addends.bias, addends.residual}) {
    if (addend) {
      y = mx::add(y, mx::astype(*addend, y.dtype(), stream), stream);
    }
  }
  return y;
}

}  // namespace

mx::array quantized_matmul(const mx::array& x_,
                           const mx::array& w,
                           const mx::array& scales_,
                           const std::optional<mx::array>& biases_,
                           bool transpose,
                           std::optional<int> group_size,
                           std::optional<int> bits,
                           const std::string& mode,
                           const MatmulOptions& options,
                           const Addends& addends,
                           mx::StreamOrDevice s) {
  QuantFormat format = recognised(
      {bits.value_or(4), group_size.value_or(64)}, scales_, biases_, options);
  check_format(kMatmul, format);
  mx::Stream stream = mx::to_stream(s);
  auto theirs = [&] {
    mx::array y = computable(
        mx::quantized_matmul(
            x_, w, scales_, biases_, transpose, group_size, bits, mode, stream),
        x_,
        w,
        stream);
    check_addends(addends, y.shape());
    return add(y, addends, stream);
  };
  if (mode != "affine" || !supported(format)) {
    return theirs();
  }
  check_weights(kMatmul, w, scales_, biases_, format);
  int K = scales_.shape(-1) * format.group_size;
  int N = w.shape(-2);
  int in = transpose ? K : N, out = transpose ? N : K;
  check_activations(kMatmul, x_, w, in, transpose);
  mx::Dtype dtype = result_dtype(x_, scales_);
  mx::Dtype scale_dtype = mx::result_type(scales_, *biases_);
  if (!bridge::to_dtype(dtype) || !bridge::to_dtype(scale_dtype)) {
    return theirs();
  }
  Aligned a = align_batches({mx::astype(x_, dtype, stream),
                             {{w,
                               mx::astype(scales_, scale_dtype, stream),
                               mx::astype(*biases_, scale_dtype, stream)}}},
                            stream);
  fusion::flatten_heads(a.x);
  const Quantized& q = a.weights[0];
  mx::Shape shape = a.x.shape();
  shape.back() = out;
  bool vector = x_.ndim() == 1 && w.ndim() > 2;
  auto finish = [&](mx::array y) {
    return vector ? mx::squeeze(y, -2, stream) : y;
  };
  mx::Shape result = shape;
  if (vector) {
    result.erase(result.end() - 2);
  }
  check_addends(addends, result);
  if (a.x.size() == 0 || w.size() == 0) {
    return add(finish(mx::zeros(shape, dtype, stream)), addends, stream);
  }
  MatmulProblem problem =
      bridge::matmul_problem(a.x, q.w, q.scales, format, transpose);
  problem.batch_invariant = options.batch_invariant;
  problem.half_tiles = options.half_tiles;
  if (transpose) {
    problem.epilogue = {addends.bias.has_value(), addends.residual.has_value()};
  }
  tuning::consult(problem, options, stream.device);
  if (problem.choice == kLeaveToMlx ||
      !supported_on(problem, a.x.is_tracer(), stream)) {
    mx::array y = mx::quantized_matmul(a.x,
                                       q.w,
                                       q.scales,
                                       q.biases,
                                       transpose,
                                       group_size,
                                       bits,
                                       mode,
                                       stream);
    return add(finish(mx::astype(y, dtype, stream)), addends, stream);
  }
  std::vector<mx::array> inputs{a.x, q.w, q.scales, q.biases};
  if (problem.epilogue.bias) {
    inputs.push_back(mx::astype(*addends.bias, dtype, stream));
  }
  if (problem.epilogue.residual) {
    mx::array residual = mx::astype(*addends.residual, dtype, stream);
    inputs.push_back(vector ? mx::expand_dims(residual, -2, stream) : residual);
  }
  inputs = contiguous(std::move(inputs), stream);
  auto node = std::make_shared<QuantizedMatmul>(
      stream, format, transpose, options, problem.epilogue);
  if (stream.device == mx::Device::gpu) {
    fusion::join_products(node, x_, inputs, problem);
  }
  mx::array y = finish(mx::array(shape, dtype, node, std::move(inputs)));
  return problem.epilogue.any() ? y : add(y, addends, stream);
}

}  // namespace nibble::ops
