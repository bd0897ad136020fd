// Addends of a product, in float, before its one rounding to y.
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// A bias [N] for every row of y, and a residual with the layout of y. `parts`
// says which of them exist, the same for all threads; the other is never read.
template <typename T>
struct Epilogue {
  const device T* bias;
  const device T* residual;
  int parts;  // NIBBLE_BIAS | NIBBLE_RESIDUAL

  NIBBLE_INLINE Epilogue() : bias(nullptr), residual(nullptr), parts(0) {}

  // For a part of y that begins `offset` elements after y.
  NIBBLE_INLINE Epilogue(const device T* bias_,
                         const device T* residual_,
                         int parts_,
                         size_t offset)
      : bias(bias_), residual(residual_ + offset), parts(parts_) {}

  // The same for a part that begins `offset` elements later.
  NIBBLE_INLINE Epilogue at(size_t offset) const thread {
    return Epilogue(bias, residual, parts, offset);
  }

  // y at column `column`, `offset` elements from where this part begins.
  NIBBLE_INLINE T finish(float sum, int column, size_t offset) const thread {
    if (parts & NIBBLE_BIAS) {
      sum += float(bias[column]);
    }
    if (parts & NIBBLE_RESIDUAL) {
      sum += float(residual[offset]);
    }
    return T(sum);
  }
};

}  // namespace nibble
