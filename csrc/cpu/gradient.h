// The gradients of scales and biases on all cores.
//
// y = x @ w_hat^T, or x @ w_hat, with w_hat = scale * code + bias in each
// group.
//
// With d = dy^T @ x, or x^T @ dy:
//
//   d/d scale[n, g] = sum over the k of group g of code[n, k] * d[n, k]
//
//   d/d bias[n, g]  = sum over the k of group g of d[n, k]
//
// Sums are fp32. Their order depends on neither the number of threads nor on
// the other matrices.
#pragma once

#include <cstdint>
#include <vector>

#include "csrc/core/problem.h"
#include "csrc/cpu/gather.h"

namespace nibble::cpu {

// The rows of x and of y that meet each matrix.
struct MatrixRows {
  std::vector<int> first;      // of matrix i; one more at the end
  std::vector<uint32_t> x, y;  // rows, matrix by matrix
};

MatrixRows rows_by_matrix(const MatmulProblem& problem);
MatrixRows rows_by_matrix(const GatherProblem& problem, const Indices& indices);

struct GradientOperands {
  const uint32_t* w;  // matrices [.., N, K]
  const void* x;
  const void* dy;  // of x's type
  float* scales;   // [.., N, K / group_size]
  float* biases;
};

// Computes the gradients of matrices [N, K]; `rows` has all rows of each.
void group_gradients(const Product& product,
                     const MatrixRows& rows,
                     const GradientOperands& operands);

}  // namespace nibble::cpu
