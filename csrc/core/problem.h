// What is to be computed, with everything a planner may look at and nothing
// else: no pointers, no device.
#pragma once

#include <string_view>

#include "csrc/core/dtype.h"
#include "csrc/core/format.h"

namespace nibble {

// How a batch of activations finds its weights: batch b uses weight matrix
// (b / repeat) % count. A plain 2-D weight is {1, 1, 1}.
struct Batch {
  int size = 1;    // matrices of activations
  int count = 1;   // matrices of weights
  int repeat = 1;  // consecutive activations that share one

  bool operator==(const Batch&) const = default;
};

// What is added to a product before it is rounded.
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
struct MatmulProblem {
  int M = 1;
  int N = 1;
  int K = 1;
  Batch batch;
  Dtype dtype = Dtype::kFloat16;        // of x and y
  Dtype scale_dtype = Dtype::kFloat16;  // of scales and biases
  QuantFormat format;
  bool transpose = true;
  // The bits of a row of y may not depend on the other rows of x.
  bool batch_invariant = false;
  // Tiles may hold bfloat numbers in half, where these fit into it.
  bool half_tiles = false;
  Epilogue epilogue;  // only if transposed
  // The candidate that a tuned table names, for a planner to follow if it is
  // one; empty: the planner's own choice. Outlives the problem.
  std::string_view choice;

  bool operator==(const MatmulProblem&) const = default;
};

// Consecutive batches that share their weights are more rows of one product,
// which then reads them once.
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
struct GatherProblem {
  int B = 1;
  int M = 1;
  int N = 1;
  int K = 1;
  int experts = 1;
  int rows = 1;  // matrices of activations
  Dtype dtype = Dtype::kFloat16;
  Dtype scale_dtype = Dtype::kFloat16;
  QuantFormat format;
  bool sorted = false;  // rhs never falls
  bool transpose = true;
  // The bits of a row of y may not depend on other rows or products.
  bool batch_invariant = false;

  bool operator==(const GatherProblem&) const = default;
};

// w_hat [rows, K] of type `dtype` from a packed matrix.
struct DequantizeProblem {
  int rows = 1;
  int K = 1;
  Dtype dtype = Dtype::kFloat16;
  Dtype scale_dtype = Dtype::kFloat16;
  QuantFormat format;
};

}  // namespace nibble
