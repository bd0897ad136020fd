#include "csrc/mlx/ops/validate.h"

#include "csrc/core/error.h"
#include "mlx/ops.h"
#include "mlx/utils.h"

namespace nibble::ops {

std::ostream& operator<<(std::ostream& out, Text text) {
  const mx::Shape& shape = text.shape;
  out << '(';
  for (size_t i = 0; i < shape.size(); ++i) {
    out << (i ? "," : "") << shape[i];
  }
  return out << (shape.size() == 1 ? ",)" : ")");
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
                   const QuantizedArrays& matrix,
                   const QuantFormat& format) {
  const mx::array &w = matrix.w, &scales = matrix.scales;
  const mx::array& biases = matrix.biases_input();
  const ModeInfo& mode = format.info();
  require(w.dtype() == mx::uint32,
          op,
          "w must be packed in uint32 but its dtype is ",
          w.dtype());
  require(matrix.biases.has_value() == mode.stores_biases,
          op,
          "mode '",
          mode.mlx_name,
          mode.stores_biases ? "' needs biases but got none"
                             : "' must have no biases but got some");
  require(w.ndim() >= 2,
          op,
          "w must have two or more dimensions but its shape is ",
          text(w.shape()));
  require(scales.shape() == biases.shape(),
          op,
          "scales and biases must have the same shape but are ",
          text(scales.shape()),
          " and ",
          text(biases.shape()));
  require(
      !mode.stores_biases || (mx::issubdtype(scales.dtype(), mx::floating) &&
                              mx::issubdtype(biases.dtype(), mx::floating)),
      op,
      "scales and biases must be floating point but are ",
      scales.dtype(),
      " and ",
      biases.dtype());
  require(mode.stores_biases || scales.dtype() == mx::uint8,
          op,
          "mode '",
          mode.mlx_name,
          "' needs scales of uint8 but they are ",
          scales.dtype());
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

void check_activations(const char* op,
                       const mx::array& x,
                       const mx::array& w,
                       int in,
                       bool transpose,
                       bool gathered) {
  require(!gathered || x.ndim() >= 2,
          op,
          "x must have two or more dimensions but its shape is ",
          text(x.shape()));
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

void check_addends(const char* op, const Addends& addends, const mx::Shape& y) {
  if (addends.bias) {
    const mx::Shape& shape = addends.bias->shape();
    require(shape == mx::Shape{y.back()},
            op,
            "bias of shape ",
            text(mx::Shape{y.back()}),
            " is required but it has the shape ",
            text(shape));
  }
  if (addends.residual) {
    const mx::Shape& shape = addends.residual->shape();
    require(shape == y,
            op,
            "residual must have the shape of the result, ",
            text(y),
            ", but has the shape ",
            text(shape));
  }
}

}  // namespace nibble::ops
