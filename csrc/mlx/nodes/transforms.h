// What the primitives' function transforms (vjp, vmap) share.
#pragma once

#include <vector>

#include "csrc/core/format.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble {

namespace mx = mlx::core;

// d/d scales and d/d biases of w_hat = scales * q + biases, given dw =
// d/d w_hat [..., N, K] in float32: sums over each group.
struct GroupGradients {
  mx::array scales, biases;
};

GroupGradients group_gradients(const mx::array& dw,
                               const mx::array& w,
                               const mx::array& scales,
                               QuantFormat format,
                               mx::Stream s);

// Sums away the leading dimensions that broadcasting added or stretched.
mx::array sum_to(mx::array a, const mx::Shape& shape, mx::Stream s);

// How many elements the mapped inputs have along their axes.
int mapped_size(const std::vector<mx::array>& inputs,
                const std::vector<int>& axes);

// Moves a mapped axis to the front; an input that is not mapped (axis < 0) is
// broadcast along a new one of `size`.
mx::array to_front(const mx::array& a, int axis, int size, mx::Stream s);

// Gives [V, dims...] as many dimensions as wanted, by ones after the first.
mx::array pad_batch(const mx::array& a, size_t ndim, mx::Stream s);

}  // namespace nibble
