// The gradients of the scales and biases of y = x @ w_hat^T, or x @ w_hat.
//
// With d = dy^T @ x, or x^T @ dy, which is d/d w_hat [N, K]:
//
//   d/d scale[n, g] = sum over the k of group g of code[n, k] * d[n, k]
//   d/d bias[n, g]  = sum over the k of group g of d[n, k]
//
// A simdgroup sums a square of d over all rows, in registers, and reduces it to
// groups with the codes. So d is never in memory, and no row is staged:
//
//               K                      a square: 32 x 32 of d
//        +----+----+----+              a threadgroup: four squares, side by
//      N | sg | sg |    |              side where they share a group
//        +----+----+----+
//
// All sums are in float, in one order: by rows of x, by columns, by squares.
#pragma once

#include <metal_stdlib>

#include "kernels/expert_rows.h"
#include "kernels/format.h"
#include "kernels/gradient_square.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// The rows that meet one matrix of a batch.
struct RowsOfBatch {
  int M;
  int w_count;
  int matrix;
  int count;  // of all batches of the matrix

  NIBBLE_INLINE RowPair at(int i) const thread {
    size_t row = size_t(i);
    if (w_count > 1) {
      const size_t batch = size_t(i / M) * size_t(w_count) + size_t(matrix);
      row = batch * size_t(M) + size_t(i % M);
    }
    return {row, row};
  }
};

// The experts of products in the order of their experts.
struct ExpertsInOrder {
  const device uint* order;
  const device uint* rhs;

  NIBBLE_INLINE uint operator[](int i) const thread { return rhs[order[i]]; }
};

// The rows that meet one expert: products [first, ...) of `order`.
struct RowsOfExpert {
  const device uint* lhs;
  const device uint* order;
  int M;
  int first;
  int count;

  NIBBLE_INLINE RowPair at(int i) const thread {
    const uint product = order[first + i / M];
    const size_t row = size_t(i % M);
    return {size_t(lhs[product]) * size_t(M) + row,
            size_t(product) * size_t(M) + row};
  }
};

// Computes the squares of threadgroup `tgid`.
template <typename T, typename Q, typename Rows>
NIBBLE_INLINE void gradient_tile(const thread GradientOperands<T>& p,
                                 const thread Rows& rows,
                                 uint3 tgid,
                                 int sgid,
                                 uint lane,
                                 threadgroup float2* memory) {
  constexpr int kSide = NIBBLE_GRADIENT_SIDE;
  constexpr int kAcross = nibble_gradient_across(Q::kGroupSize);
  constexpr int kDown = NIBBLE_GRADIENT_SIMDGROUPS / kAcross;
  constexpr int kShares = Q::kGroupSize / kSide;  // squares of a group
  static_assert(Q::kGroupSize % kSide == 0 && kAcross % kShares == 0,
                "a threadgroup has whole groups");
  GradientSquare<T, Q::kBits> square(
      (int(tgid.y) * kDown + sgid / kAcross) * kSide,
      (int(tgid.x) * kAcross + sgid % kAcross) * kSide,
      lane);
  const bool inside = square.first_row < p.N && square.first_column < p.K;
  float2 both = float2(0.0f);
  if (inside) {
    square.add_rows(p, rows);
    both = square.reduce(p);
  }
  const int row = square.row() + square.quarter();
  if (kShares > 1) {
    const int place = sgid * kSide + row - square.first_row;
    memory[place] = both;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sgid % kShares == 0) {
#pragma clang loop unroll(full)
      for (int s = 1; s < kShares; ++s) {
        both += memory[place + s * kSide];
      }
    }
  }
  if (inside && row < p.N && sgid % kShares == 0) {
    const size_t at = size_t(row) * size_t(p.K / Q::kGroupSize) +
                      size_t(square.first_column / Q::kGroupSize);
    p.scales[at] = both.x;
    p.biases[at] = both.y;
  }
}

// The operands of matrix `matrix` of `count`. `out` has the scales of all
// matrices, then their biases.
template <typename T, typename Q>
NIBBLE_INLINE GradientOperands<T> gradient_operands(const device T* x,
                                                    const device T* dy,
                                                    const device uint* words,
                                                    device float* out,
                                                    int N,
                                                    int K,
                                                    bool transpose,
                                                    uint matrix,
                                                    uint count) {
  const size_t groups = size_t(N) * size_t(K / Q::kGroupSize);
  const size_t row_words = size_t(words_of(K, Q::kBits));
  device float* scales = out + size_t(matrix) * groups;
  return {x,
          dy,
          words + size_t(matrix) * size_t(N) * row_words,
          scales,
          scales + size_t(count) * groups,
          N,
          K,
          transpose};
}

// The matrices of a batch: x [batches * w_count, M, ...], dy as y.
template <typename T, typename Q>
[[kernel]] void group_gradient(const device uint* w [[buffer(0)]],
                               const device T* x [[buffer(1)]],
                               const device T* dy [[buffer(2)]],
                               device float* out [[buffer(3)]],
                               constant GradientParams& params [[buffer(4)]],
                               uint3 tgid [[threadgroup_position_in_grid]],
                               uint3 grid [[threadgroups_per_grid]],
                               uint sgid [[simdgroup_index_in_threadgroup]],
                               uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kMemory = nibble_gradient_memory(Q::kGroupSize) / 8;
  threadgroup float2 memory[kMemory];
  const RowsOfBatch rows{
      params.M, params.w_count, int(tgid.z), params.M * params.batches};
  const GradientOperands<T> p = gradient_operands<T, Q>(
      x, dy, w, out, params.N, params.K, params.transpose != 0, tgid.z, grid.z);
  gradient_tile<T, Q>(p, rows, tgid, int(sgid), lane, memory);
}

// Experts: `order` has the products in the order of their experts.
template <typename T, typename Q>
[[kernel]] void gather_group_gradient(const device uint* w [[buffer(0)]],
                                      const device T* x [[buffer(1)]],
                                      const device T* dy [[buffer(2)]],
                                      const device uint* lhs [[buffer(3)]],
                                      const device uint* rhs [[buffer(4)]],
                                      const device uint* order [[buffer(5)]],
                                      device float* out [[buffer(6)]],
                                      constant GatherGradientParams& params
                                      [[buffer(7)]],
                                      uint3 tgid
                                      [[threadgroup_position_in_grid]],
                                      uint3 grid [[threadgroups_per_grid]],
                                      uint sgid
                                      [[simdgroup_index_in_threadgroup]],
                                      uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kMemory = nibble_gradient_memory(Q::kGroupSize) / 8;
  threadgroup float2 memory[kMemory];
  const ExpertsInOrder experts{order, rhs};
  const int begin = first_of(experts, 0, params.B, tgid.z);
  const int end = first_of(experts, begin, params.B, tgid.z + 1);
  const RowsOfExpert rows{
      lhs, order, params.M, begin, (end - begin) * params.M};
  const GradientOperands<T> p = gradient_operands<T, Q>(
      x, dy, w, out, params.N, params.K, params.transpose != 0, tgid.z, grid.z);
  gradient_tile<T, Q>(p, rows, tgid, int(sgid), lane, memory);
}

}  // namespace nibble
