// What is added to a sum, in float, before the one rounding to y.
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// A bias [N] for every row of y, and a residual that lies as y does; which of
// them there are is the same for all threads. Others are never read.
template <typename T>
struct Epilogue {
  const device T* bias;
  const device T* residual;
  int parts;  // NIBBLE_BIAS | NIBBLE_RESIDUAL

  Epilogue() : bias(nullptr), residual(nullptr), parts(0) {}

  // For a part of y that begins `offset` elements from where y does.
  Epilogue(const device T* bias_,
           const device T* residual_,
           int parts_,
           size_t offset)
      : bias(bias_), residual(residual_ + offset), parts(parts_) {}

  // The same for a part that begins `offset` elements further on.
  Epilogue at(size_t offset) const thread {
    return Epilogue(bias, residual, parts, offset);
  }

  // The value of column `column`, `offset` elements from where y begins.
  T finish(float sum, int column, size_t offset) const thread {
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
