#include "csrc/mlx/ops/validate.h"

#include "csrc/core/error.h"
#include "csrc/mlx/bridge.h"
#include "csrc/mlx/facts/symmetric.h"
#include "mlx/ops.h"
#include "mlx/utils.h"

namespace nibble::ops {

std::ostream& operator<<(std::ostream& out, Text<mx::Shape> text) {
  const mx::Shape& shape = text.value;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? "," : "") << shape[i];
  }
  return out << (shape.size() == 1 ? ",)" : ")");
}

std::ostream& operator<<(std::ostream& out, Text<mx::Dtype> text) {
  return mx::operator<<(out, text.value);
}

void check_format(const char* op, const QuantFormat& format) {
  require(format.bits > 0 && format.group_size > 0,
          op,
          "bits and group_size must be positive but are ",
          format.bits,
          " and ",
          format.group_size);
}

void check_weights(const char* op,
                   const mx::array& w,
                   const mx::array& scales,
                   const std::optional<mx::array>& biases,
                   const QuantFormat& format) {
  require(w.dtype() == mx::uint32,
          op,
          "w must be packed in uint32 but its dtype is ",
          text(w.dtype()));
  require(biases.has_value(), op, "mode 'affine' needs biases but got none");
  require(w.ndim() >= 2,
          op,
          "w must have two or more dimensions but its shape is ",
          text(w.shape()));
  require(scales.shape() == biases->shape(),
          op,
          "scales and biases must have the same shape but are ",
          text(scales.shape()),
          " and ",
          text(biases->shape()));
  require(mx::issubdtype(scales.dtype(), mx::floating) &&
              mx::issubdtype(biases->dtype(), mx::floating),
          op,
          "scales and biases must be floating point but are ",
          text(scales.dtype()),
          " and ",
          text(biases->dtype()));
  mx::Shape expected = w.shape();
  int64_t K = int64_t{w.shape(-1)} * 32 / format.bits;
  expected.back() = static_cast<int>(K / format.group_size);
  require(scales.shape() == expected && K % format.group_size == 0,
          op,
          "scales of shape ",
          text(expected),
          " are required for w of shape ",
          text(w.shape()),
          " with ",
          format.bits,
          " bits and groups of ",
          format.group_size,
          " but scales have the shape ",
          text(scales.shape()));
}

QuantFormat recognised(QuantFormat format,
                       const mx::array& scales,
                       const std::optional<mx::array>& biases,
                       const MatmulOptions& options) {
  format.mode =
      affine_mode(options.symmetric ||
                  (biases && symmetric::known(scales, *biases, format.bits)));
  return format;
}

void check_activations(const char* op,
                       const mx::array& x,
                       const mx::array& w,
                       int in,
                       bool transpose) {
  require(x.ndim() >= 1 && x.shape(-1) == in,
          op,
          "the last dimension of x must be ",
          in,
          " for w of shape ",
          text(w.shape()),
          transpose ? " transposed" : "",
          " but x has the shape ",
          text(x.shape()));
}

mx::Dtype result_dtype(const mx::array& x, const mx::array& scales) {
  return mx::issubdtype(x.dtype(), mx::floating)
             ? x.dtype()
             : mx::promote_types(x.dtype(), scales.dtype());
}

mx::array computable(mx::array y,
                     const mx::array& x,
                     const mx::array& w,
                     const mx::Stream& stream) {
  return x.size() > 0 && w.size() > 0 ? y
                                      : mx::zeros(y.shape(), y.dtype(), stream);
}

mx::array contiguous(const mx::array& a, const mx::Stream& stream) {
  if (stream.device == mx::Device::cpu ||
      (!a.is_tracer() && a.is_available() && a.flags().row_contiguous)) {
    return a;
  }
  return mx::contiguous(a, false, stream);
}

std::vector<mx::array> contiguous(std::vector<mx::array> arrays,
                                  const mx::Stream& stream) {
  for (mx::array& a : arrays) {
    a = contiguous(a, stream);
  }
  return arrays;
}

Aligned align_batches(Aligned a, const mx::Stream& stream) {
  if (a.weights[0].w.ndim() == 2) {
    return a;
  }
  if (a.x.ndim() == 1) {
    a.x = mx::expand_dims(a.x, 0, stream);
  }
  mx::Shape wanted = bridge::batch_shape(a.weights[0].w.shape());
  mx::Shape batch =
      mx::broadcast_shapes(bridge::batch_shape(a.x.shape()), wanted);
  auto broadcast = [&](const mx::array& v) {
    mx::Shape shape = batch;
    shape.push_back(v.shape(-2));
    shape.push_back(v.shape(-1));
    return mx::broadcast_to(v, shape, stream);
  };
  a.x = broadcast(a.x);
  if (!bridge::match_batch(batch, wanted)) {
    for (Quantized& q : a.weights) {
      q = {broadcast(q.w), broadcast(q.scales), broadcast(q.biases)};
    }
  }
  return a;
}

}  // namespace nibble::ops
