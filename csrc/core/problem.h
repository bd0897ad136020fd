// Problems: everything that a planner may look at, without pointers and without
// a device.
#pragma once

#include <string_view>

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"

namespace nibble {

// The types of an operation's arrays.
struct Types {
  Dtype dtype = Dtype::kFloat16;        // of x and y
  Dtype scale_dtype = Dtype::kFloat16;  // of scales and biases
  QuantFormat format;

  bool operator==(const Types&) const = default;
};

// The types of the gradients' kernel for these types, which does not read
// scales.
constexpr Types gradient_types(Types types) {
  types.scale_dtype = types.dtype;
  if (types.format.mode == Mode::kSymmetric) {
    types.format.mode = Mode::kAffine;
  }
  return types;
}

// The fields that all products of x and a packed w [N, K] share.
struct Product : Types {
  int M = 1;
  int N = 1;
  int K = 1;
  bool transpose = true;
  // The bits of a row of y may not depend on other rows of x or on other
  // products.
  bool batch_invariant = false;

  bool operator==(const Product&) const = default;
  // Columns of y.
  constexpr int columns() const { return transpose ? N : K; }
};

// How a batch of activations finds its weights: batch b uses weight matrix
// (b / repeat) % count. A plain 2-D weight is {1, 1, 1}.
struct Batch {
  int size = 1;    // matrices of activations
  int count = 1;   // matrices of weights
  int repeat = 1;  // consecutive activations that share one

  bool operator==(const Batch&) const = default;
};

// Arrays that are added to a product before it is rounded.
struct Epilogue {
  bool bias = false;      // [N], to every row
  bool residual = false;  // of y's shape

  bool operator==(const Epilogue&) const = default;
  constexpr bool any() const { return bias || residual; }
};

// With W = dequantize(w[(b / repeat) % count]), w [count, N, K]:
//   transpose:     y[b] = x[b] @ W^T, x [size, M, K], y [size, M, N]
//   not transpose: y[b] = x[b] @ W,   x [size, M, N], y [size, M, K]
// All row-contiguous.
struct MatmulProblem : Product {
  Batch batch;
  // Tiles may convert bfloat numbers to half where these fit.
  bool half_tiles = false;
  Epilogue epilogue = {};  // only if transposed
  // The name of a candidate from a tuned table. The planner follows it if the
  // problem has this candidate. Empty: no choice. Outlives the problem.
  std::string_view choice = {};

  bool operator==(const MatmulProblem&) const = default;
  // True if tiles compute in half.
  constexpr bool in_half() const {
    return half_tiles && dtype == Dtype::kBFloat16;
  }
};

// Returns `p` with consecutive batches that share their weights as more rows of
// one product, which then reads the weights once.
inline MatmulProblem merge_rows(MatmulProblem p) {
  Batch& batch = p.batch;
  if (batch.count == 1) {
    batch.repeat = batch.size;
  }
  if (batch.size % batch.repeat == 0) {
    p.M *= batch.repeat;
    batch.size /= batch.repeat;
    batch.repeat = 1;
  }
  return p;
}

// With W = dequantize(w), w [experts, N, K], and indices lhs, rhs [B]:
//   transpose:     y[b] = x[lhs[b]] @ W[rhs[b]]^T,  x [rows, M, K], y [B, M, N]
//   not transpose: y[b] = x[lhs[b]] @ W[rhs[b]],    x [rows, M, N], y [B, M, K]
struct GatherProblem : Product {
  int B = 1;
  int experts = 1;
  int rows = 1;         // matrices of activations
  bool sorted = false;  // rhs never falls

  bool operator==(const GatherProblem&) const = default;
};

// w_hat [rows, K] of type `dtype` from a packed matrix.
struct DequantizeProblem : Types {
  int rows = 1;
  int K = 1;

  bool operator==(const DequantizeProblem&) const = default;
};

}  // namespace nibble
