#include "csrc/mlx/nodes/dequantize.h"

#include <memory>

#include "csrc/mlx/facts/decision.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/steps.h"
#include "mlx/ops.h"

namespace nibble::ops {

mx::array dequantize(const QuantizedArrays& matrix,
                     const QuantArgs& args,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s,
                     const MatmulOptions& options) {
  mx::Stream stream = mx::to_stream(s);
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
  }
  return mx::dequantize(matrix.w,
                        matrix.scales,
                        matrix.biases,
                        args.group_size,
                        args.bits,
                        args.mode,
                        matrix.global_scale,
                        dtype,
                        stream);
}

}  // namespace nibble::ops
