// The arrays of a product. All are row-contiguous.
#pragma once

#include <cstdint>

namespace nibble::cpu {

class Packed;

// Quantized matrices [.., N, K], one after the other.
struct QuantizedOperands {
  const uint32_t* w;
  const void* scales;
  const void* biases;  // not read if the format has none
  // The same matrices in the packed layout (packed.h). x @ w_hat^T then reads
  // no other array.
  const Packed* packed = nullptr;
};

// Shapes and dtypes as in MatmulProblem or GatherProblem.
struct MatmulOperands {
  QuantizedOperands weights;
  const void* x;
  void* y;
  // The arrays of the problem's epilogue, of problem.dtype.
  const void* bias = nullptr;      // [N]
  const void* residual = nullptr;  // of y's shape
};

// Gate and up have the same shape, format and scale_dtype.
struct SwigluOperands {
  QuantizedOperands gate, up;
  const void* x;
  void* y;
};

}  // namespace nibble::cpu
