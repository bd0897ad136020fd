// The checks of the operations' arguments.
#pragma once

#include <ostream>

#include "csrc/core/format.h"
#include "csrc/mlx/options.h"
#include "mlx/array.h"

namespace nibble::ops {

// A shape in an error. It is formatted only if the error is thrown: a graph of
// a thousand products pays nothing.
struct Text {
  const mx::Shape& shape;
};
inline Text text(const mx::Shape& shape) {
  return {shape};
}
std::ostream& operator<<(std::ostream& out, Text text);

// Throws unless bits and group size are positive. MLX divides by them.
void check_format(const char* op, const QuantFormat& format);

// Throws unless this is a matrix of the format.
void check_weights(const char* op,
                   const QuantizedArrays& matrix,
                   const QuantFormat& format);

// Throws unless x can be multiplied by w: [..., in] with in = N or K, and a
// second dimension if `gathered`.
void check_activations(const char* op,
                       const mx::array& x,
                       const mx::array& w,
                       int in,
                       bool transpose,
                       bool gathered);

// Throws unless the addends fit a result of this shape.
void check_addends(const char* op, const Addends& addends, const mx::Shape& y);

}  // namespace nibble::ops
