#include "csrc/mlx/nodes/quantized_matmul.h"

#include <memory>

#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/nodes/group_gradient.h"
#include "csrc/mlx/nodes/unpack.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kOp = "quantized_matmul";
using enum QuantizedMatmul::Input;

// y + bias + residual, where no kernel adds them.
mx::array add(mx::array y, const Addends& addends, const mx::Stream& stream) {
  for (const auto& addend : {addends.bias, addends.residual}) {
    if (addend) {
      y = mx::add(y, mx::astype(*addend, y.dtype(), stream), stream);
    }
  }
  return y;
}

// `a` with zeros behind its columns, `size` in all.
mx::array widened(const mx::array& a, int size, const mx::Stream& stream) {
  return mx::pad(a,
                 {-1},
                 {0},
                 {size - a.shape(-1)},
                 mx::array(0, a.dtype()),
                 "constant",
                 stream);
}

}  // namespace

mx::array quantized_matmul(const mx::array& x,
                           const QuantizedArrays& matrix,
                           bool transpose,
                           const QuantArgs& args,
                           const MatmulOptions& options,
                           const Addends& addends,
                           mx::StreamOrDevice s) {
  mx::Stream stream = mx::to_stream(s);
  auto by_mlx = [&](const mx::array& x, const QuantizedArrays& given) {
    QuantizedArrays q = whole(given, stream);
    return mx::quantized_matmul(x,
                                q.w,
                                q.scales,
                                q.biases,
                                transpose,
                                args.group_size,
                                args.bits,
                                args.mode,
                                stream);
  };
  auto request = normalise({.op = kOp,
                            .stream = stream,
                            .args = args,
                            .matrix = matrix,
                            .x = &x,
                            .transpose = transpose,
                            .options = &options});
  if (!request) {
    mx::array y =
        computable(by_mlx(x, repack::own_arrays(matrix)), x, matrix.w, stream);
    check_addends(kOp, addends, y.shape());
    return add(y, addends, stream);
  }
  align_batches(*request, stream);
  auto& [format, dtype, inputs] = *request;
  fusion::flatten_heads(inputs[kX]);
  Epilogue epilogue;
  if (transpose) {
    epilogue = {addends.bias.has_value(), addends.residual.has_value()};
  }
  auto node = std::make_shared<QuantizedMatmul>(
      stream, format, transpose, options, epilogue);
  // A vector times matrices has been given a dimension.
  bool vector = x.ndim() == 1 && matrix.w.ndim() > 2;
  mx::Shape shape = node->output_shape(inputs);
  if (addends.any()) {
    mx::Shape result = shape;
    if (vector) {
      result.erase(result.end() - 2);
    }
    check_addends(kOp, addends, result);
  }
  auto finish = [&](const mx::array& y, const Addends& rest) {
    return add(vector ? mx::squeeze(y, -2, stream) : y, rest, stream);
  };
  if (request->is_empty()) {
    mx::array y = mx::zeros(shape, dtype, stream);
    // MLX's sums of no elements divide by zero on CUDA if they are compiled.
    return finish(y, y.size() == 0 ? Addends{} : addends);
  }
  MatmulProblem problem;
  bool always_ours = decision::always_ours(options, stream.device);
  if (!always_ours) {
    problem = node->problem(inputs);
  }
  if (!always_ours &&
      !decision::ours(
          problem, options, inputs[kX].is_tracer(), stream.device)) {
    inputs = repack::unpacked(std::move(inputs), kW);
    auto q = QuantizedArrays::of(
        format, inputs[kW], inputs[kScales], inputs[kBiases]);
    mx::array wide_x = inputs[kX];
    bool plain = x.ndim() > 1 && !inputs[kX].is_tracer() &&
                 !inputs[kScales].is_tracer() && !inputs[kBiases].is_tracer();
    bool dense = decision::dense(problem, stream.device, plain);
    int columns = decision::columns_for_mlx(problem, stream.device);
    if (!dense && columns > problem.K) {
      wide_x = widened(wide_x, columns, stream);
      q.w = widened(q.w, format.words_per_row(columns), stream);
      q.scales = widened(q.scales, format.groups_per_row(columns), stream);
      if (q.biases) {
        q.biases = widened(*q.biases, format.groups_per_row(columns), stream);
      }
    }
    mx::Dtype own = dense_dtype(q, dtype);
    mx::array y =
        dense ? mx::matmul(even(mx::astype(wide_x, own, stream), stream),
                           rounded(q, transpose, args, own, stream),
                           stream)
              : by_mlx(wide_x, q);
    if (trains_groups(inputs, format) &&
        decision::gradient_is_ours(problem, stream.device)) {
      y = with_gradients_of(node, inputs, mx::astype(y, dtype, stream));
    }
    return mx::astype(finish(y, addends), dtype, stream);
  }
  if (epilogue.bias) {
    inputs.push_back(mx::astype(*addends.bias, dtype, stream));
  }
  if (epilogue.residual) {
    mx::array residual = mx::astype(*addends.residual, dtype, stream);
    inputs.push_back(vector ? mx::expand_dims(residual, -2, stream) : residual);
  }
  mx::array y = build(node, std::move(inputs), std::move(shape), dtype);
  if (stream.device == mx::Device::gpu) {
    fusion::join_products(node, x, y.inputs(), problem);
  }
  return finish(y, epilogue.any() ? Addends{} : addends);
}

}  // namespace nibble::ops
