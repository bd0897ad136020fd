// The three steps of every operation of quantized matrices:
//
//   normalise  checks the arguments and brings them into the form of a node;
//   decide     asks whether our kernels compute this on the device
//              (facts/decision.h);
//   build      makes the node.
//
// MLX's operation computes the result where a step says no.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/core/format.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/plans.h"
#include "mlx/primitives.h"

namespace nibble::ops {

// The arguments of a call.
struct Call {
  const char* op;
  mx::Stream stream;
  const QuantArgs& args;
  const QuantizedArrays& matrix;
  const QuantizedArrays* up = nullptr;  // the second matrix of swiglu
  const mx::array* x = nullptr;         // dequantize has none
  bool transpose = true;
  bool gathered = false;
  // Tells, with facts/symmetric.h, whether biases are read; null: they are.
  const MatmulOptions* options = nullptr;
  // The type of the result; by default that of x, or of the scales.
  std::optional<mx::Dtype> dtype = std::nullopt;
};

// The same in the form of a node.
struct Request {
  QuantFormat format;
  mx::Dtype dtype;                // of x and the result
  std::vector<mx::array> inputs;  // x; w, scales and biases of each matrix

  bool is_empty() const;
};

// nullopt if our kernels do not support the format or the types. Throws if the
// arguments do not fit together.
std::optional<Request> normalise(const Call& call);

// lhs and rhs as nodes take them: uint32 of one shape. Each matrix of x or w in
// turn replaces indices that are not given.
std::pair<mx::array, mx::array> normalise(const char* op,
                                          const GatherIndices& indices,
                                          const mx::array& x,
                                          const mx::array& w,
                                          const mx::Stream& stream);

// Broadcasts the batch of x with that of the matrices, as numpy does.
// Broadcasts the matrices too where match_batch() needs it.
void align_batches(Request& request, const mx::Stream& stream);

// The output of a node, of this shape, or of the shape that the node says.
mx::array build(std::shared_ptr<mx::Primitive> node,
                std::vector<mx::array> inputs,
                mx::Shape shape,
                mx::Dtype dtype);
mx::array build(std::shared_ptr<mx::Primitive> node,
                std::vector<mx::array> inputs,
                mx::Dtype dtype);

// The type in which a dense product computes a result of type `dtype`: float32
// if the scales have another type, for then no bound allows rounded weights.
mx::Dtype dense_dtype(const QuantizedArrays& matrix, mx::Dtype dtype);

// `a`, or a copy without gaps, as the first factor of a dense product or its
// indices: MLX's products for CUDA misread some views.
mx::array even(const mx::array& a, const mx::Stream& stream);

// The matrices as MLX's operations read them: for CUDA, copies of those that
// have gaps or share their groups. It reads any others as if they had neither.
QuantizedArrays whole(const QuantizedArrays& matrix, const mx::Stream& stream);

// The matrices dequantized and rounded to `dtype`, as the second factor of a
// dense product.
mx::array rounded(const QuantizedArrays& matrix,
                  bool transpose,
                  const QuantArgs& args,
                  mx::Dtype dtype,
                  const mx::Stream& stream);

// y, MLX's product of x and w; zeros if x or w is empty. MLX's CPU build
// divides by zero when it evaluates an empty product.
mx::array computable(mx::array y,
                     const mx::array& x,
                     const mx::array& w,
                     const mx::Stream& stream);

}  // namespace nibble::ops
