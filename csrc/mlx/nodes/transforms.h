// Helpers of the primitives' function transforms (vjp, vmap).
#pragma once

#include <vector>

#include "csrc/core/format.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble {

namespace mx = mlx::core;

// d/d scales and d/d biases of w_hat = scales * q + biases: sums over each
// group of dw = d/d w_hat [..., N, K], in float32.
struct GroupGradients {
  mx::array scales, biases;
};

// Raises std::invalid_argument if scales of this mode have no gradient.
void require_biases(QuantFormat format);

GroupGradients group_gradients(const mx::array& dw,
                               const mx::array& w,
                               QuantFormat format,
                               mx::Stream s);

// `a`, summed over the dimensions that broadcasting from `shape` added or
// stretched.
mx::array sum_to(mx::array a, const mx::Shape& shape, mx::Stream s);

// The number of elements of the mapped inputs along their axes.
int mapped_size(const std::vector<mx::array>& inputs,
                const std::vector<int>& axes);

// `a` with its mapped axis moved to the front. An input that is not mapped
// (axis < 0) is broadcast along a new axis of `size`.
mx::array to_front(const mx::array& a, int axis, int size, mx::Stream s);

// [V, dims...] with `ndim` dimensions: ones are inserted after the first.
mx::array pad_batch(const mx::array& a, size_t ndim, mx::Stream s);

}  // namespace nibble
