// What the operations check before they build a node, and the forms that they
// bring their arguments into.
#pragma once

#include <optional>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "csrc/core/format.h"
#include "csrc/core/planner.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/facts/self_check.h"
#include "csrc/mlx/options.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::ops {

// A shape or dtype as an error shows it. It is put into words if it is printed,
// which is never, in a graph of a thousand products.
template <typename T>
struct Text {
  const T& value;
};
template <typename T>
Text<T> text(const T& value) {
  return {value};
}
std::ostream& operator<<(std::ostream& out, Text<mx::Shape> shape);
std::ostream& operator<<(std::ostream& out, Text<mx::Dtype> dtype);

// A quantized matrix whose scales and biases are of one type.
struct Quantized {
  mx::array w, scales, biases;

  int N() const { return w.shape(-2); }
  int K(const QuantFormat& format) const {
    return scales.shape(-1) * format.group_size;
  }
};

// Throws unless both numbers of the format are positive. MLX divides by them.
void check_format(const char* op, const QuantFormat& format);

// Throws unless w, scales and biases are an affine matrix of this format.
void check_weights(const char* op,
                   const mx::array& w,
                   const mx::array& scales,
                   const std::optional<mx::array>& biases,
                   const QuantFormat& format);

// `format`, symmetric if the options or symmetric.h say so of these.
QuantFormat recognised(QuantFormat format,
                       const mx::array& scales,
                       const std::optional<mx::array>& biases,
                       const MatmulOptions& options);

// Throws unless x can be multiplied by w: [.., in] with in = N or K.
void check_activations(const char* op,
                       const mx::array& x,
                       const mx::array& w,
                       int in,
                       bool transpose);

// The type of the result: x's own, or, of integers, one that the scales give.
mx::Dtype result_dtype(const mx::array& x, const mx::array& scales);

// MLX's product y of x and w, which its CPU build divides by zero to compute if
// there is nothing in x or w: then the zeros that it is.
mx::array computable(mx::array y,
                     const mx::array& x,
                     const mx::array& w,
                     const mx::Stream& stream);

// On a GPU, kernels take rows as they lie in memory. An array that is already
// there and known to be contiguous needs no node in the graph.
mx::array contiguous(const mx::array& a, const mx::Stream& stream);
std::vector<mx::array> contiguous(std::vector<mx::array> arrays,
                                  const mx::Stream& stream);

// lhs and rhs as gather_qmm takes them: uint32 of one shape; where one is not
// given, every matrix of x or w in turn.
std::pair<mx::array, mx::array> gather_indices(
    const char* op,
    const mx::array& x,
    const mx::array& w,
    const std::optional<mx::array>& lhs,
    const std::optional<mx::array>& rhs,
    const mx::Stream& stream);

// x, and a quantized matrix each, with x's batch given numpy's broadcasting.
struct Aligned {
  mx::array x;
  std::vector<Quantized> weights;
};

Aligned align_batches(Aligned a, const mx::Stream& stream);

// True if our kernels compute this on the stream's device, and are trusted
// there. A traced graph may be run with other shapes than it was built with
// (mx.compile(shapeless=True)): all kernels that these may lead to are asked
// for then, since inside an evaluation it is too late.
template <typename Problem>
bool supported_on(const Problem& problem,
                  bool traced,
                  const mx::Stream& stream) {
  if (stream.device == mx::Device::cpu) {
    return true;
  }
  if (!metal::is_available()) {
    return false;
  }
  auto launches = plan(problem, metal::device_profile(stream.device));
  return launches.has_value() && self_check::trusted(*launches) &&
         (!traced || self_check::trusted(kernels_of_any_shape(problem)));
}

}  // namespace nibble::ops
