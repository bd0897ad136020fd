#include "csrc/mlx/nodes/dequantize.h"

#include <memory>

#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

// w_hat in float32 of codes of 1 bit. MLX's kernels for CUDA leave their result
// unwritten.
mx::array of_one_bit(const QuantizedArrays& matrix,
                     const QuantFormat& format,
                     const mx::Stream& stream) {
  mx::array places = mx::arange(0, 32, mx::uint32, stream);
  mx::array bits = mx::bitwise_and(
      mx::right_shift(mx::expand_dims(matrix.w, -1, stream), places, stream),
      mx::array(1, mx::uint32),
      stream);
  mx::Shape shape = matrix.scales.shape();
  shape.push_back(format.group_size);
  auto group = [&](const mx::array& a) {
    return mx::expand_dims(mx::astype(a, mx::float32, stream), -1, stream);
  };
  mx::array codes =
      mx::astype(mx::reshape(bits, shape, stream), mx::float32, stream);
  mx::array w_hat = mx::add(mx::multiply(codes, group(matrix.scales), stream),
                            group(*matrix.biases),
                            stream);
  return mx::flatten(w_hat, -2, -1, stream);
}

}  // namespace

mx::array dequantize(const QuantizedArrays& matrix,
                     const QuantArgs& args,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s,
                     const MatmulOptions& options) {
  mx::Stream stream = mx::to_stream(s);
  const mx::array& scales = matrix.scales;
  const std::optional<mx::array>& biases = matrix.biases;
  auto request = normalise({.op = "dequantize",
                            .stream = stream,
                            .args = args,
                            .matrix = matrix,
                            .dtype = dtype});
  if (request) {
    auto& [format, out_dtype, inputs] = *request;
    auto node = std::make_shared<Dequantize>(stream, format, out_dtype);
    if (request->is_empty()) {
      return mx::zeros(node->output_shapes(inputs)[0], out_dtype, stream);
    }
    if (decision::ours(node->problem(inputs), options, stream.device)) {
      return build(std::move(node), std::move(inputs), out_dtype);
    }
    if (biases && format.bits == 1) {
      return mx::astype(of_one_bit(matrix, format, stream), out_dtype, stream);
    }
    // MLX's kernels for CUDA would compute in the type of the scales.
    if (biases && out_dtype != scales.dtype()) {
      auto wide = [&](const mx::array& a) {
        return mx::astype(a, mx::float32, stream);
      };
      QuantizedArrays q = whole(matrix, stream);
      mx::array y = mx::dequantize(q.w,
                                   wide(q.scales),
                                   wide(*q.biases),
                                   args.group_size,
                                   args.bits,
                                   args.mode,
                                   std::nullopt,
                                   mx::float32,
                                   stream);
      return mx::astype(y, out_dtype, stream);
    }
  }
  QuantizedArrays q = whole(matrix, stream);
  return mx::dequantize(q.w,
                        q.scales,
                        q.biases,
                        args.group_size,
                        args.bits,
                        args.mode,
                        q.global_scale,
                        dtype,
                        stream);
}

}  // namespace nibble::ops
