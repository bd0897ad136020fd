// The three steps of every operation of quantized matrices:
//
//   normalise  checks the arguments and brings them into the form of a node;
//   decide     asks whether our kernels compute this on the device;
//   build      makes the node.
//
// MLX's operation computes the result where a step says no.
#pragma once

#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "csrc/core/planner.h"
#include "csrc/metal/encoder.h"
#include "csrc/mlx/facts/self_check.h"
#include "csrc/mlx/options.h"
#include "csrc/mlx/plans.h"
#include "mlx/primitives.h"

namespace nibble::ops {

// The arguments of a call.
struct Call {
  const char* op;
  mx::Stream stream;
  const QuantArgs& args;
  std::vector<const QuantizedArrays*> matrices;
  const mx::array* x = nullptr;  // dequantize has none
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

// True if the self-check trusts all of these launches.
bool is_trusted(const plans::Plan& launches);

// True if our kernels compute this on the stream's device, are trusted there,
// and have no faster kernel of MLX beside them. A traced graph may be run with
// other shapes than it was built with (mx.compile(shapeless=True)). So all
// kernels of any shape must be trusted now: inside an evaluation it is too late
// to ask.
template <typename Problem>
bool decide(const Problem& problem, bool traced, const mx::Stream& stream) {
  if (stream.device == mx::Device::cpu) {
    return true;
  }
  if (!metal::is_available()) {
    return false;
  }
  DeviceProfile device = metal::device_profile(stream.device);
  bool left_to_mlx = traced ? mlx_may_be_faster(problem, device)
                            : mlx_is_faster(problem, device);
  return !left_to_mlx && is_trusted(plans::plan(problem, device)) &&
         (!traced || self_check::trusted(kernels_of_any_shape(problem)));
}

// The output of a node.
mx::array build(std::shared_ptr<mx::Primitive> node,
                std::vector<mx::array> inputs,
                mx::Dtype dtype);

// y, MLX's product of x and w; zeros if x or w is empty. MLX's CPU build
// divides by zero when it evaluates an empty product.
mx::array computable(mx::array y,
                     const mx::array& x,
                     const mx::array& w,
                     const mx::Stream& stream);

}  // namespace nibble::ops
