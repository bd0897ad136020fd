#include "csrc/mlx/nodes/dequantize.h"

#include <memory>

#include "csrc/mlx/bridge.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/ops/validate.h"
#include "mlx/ops.h"

namespace nibble::ops {
namespace {

constexpr const char* kDequantize = "dequantize";

}  // namespace

mx::array dequantize(const mx::array& w,
                     const mx::array& scales,
                     const std::optional<mx::array>& biases,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     const std::optional<mx::array>& global_scale,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s) {
  QuantFormat format{bits.value_or(4), group_size.value_or(64)};
  check_format(kDequantize, format);
  mx::Stream stream = mx::to_stream(s);
  mx::Dtype out_dtype = dtype.value_or(scales.dtype());
  bool ours = mode == "affine" && supported(format) && biases &&
              !global_scale && bridge::to_dtype(out_dtype) &&
              bridge::to_dtype(mx::result_type(scales, *biases));
  auto theirs = [&] {
    return mx::dequantize(
        w, scales, biases, group_size, bits, mode, global_scale, dtype, s);
  };
  if (!ours) {
    return theirs();
  }
  check_weights(kDequantize, w, scales, biases, format);
  mx::Dtype scale_dtype = mx::result_type(scales, *biases);
  mx::Shape shape = w.shape();
  shape.back() = scales.shape(-1) * format.group_size;
  if (w.size() == 0) {
    return mx::zeros(shape, out_dtype, stream);
  }
  mx::array typed_scales = mx::astype(scales, scale_dtype, stream);
  mx::array typed_biases = mx::astype(*biases, scale_dtype, stream);
  if (!supported_on(
          bridge::dequantize_problem(w, typed_scales, format, out_dtype),
          false,
          stream)) {
    return theirs();
  }
  return mx::array(shape,
                   out_dtype,
                   std::make_shared<Dequantize>(stream, format, out_dtype),
                   contiguous({w, typed_scales, typed_biases}, stream));
}

}  // namespace nibble::ops
