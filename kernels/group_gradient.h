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
// The order of the columns of an 8x8 matrix is free, and so is that of its rows
// of w. This order gives each lane neighbours in memory: eight columns of x,
// and their codes, and four columns of dy.
//
//   column of a square   q * 8 + j * 2 + e    for matrix j, lane column 2 q + e
//   row of a square      r * 4 + i            for matrix i, lane row r
//
// All sums are in float, in one order: by rows of x, by columns, by squares.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/expert_rows.h"
#include "kernels/format.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// A row of x and the row of dy that it meets.
struct RowPair {
  size_t x;
  size_t dy;
};

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

// Columns [column, column + 4) of a row of `width`; zero past its end.
template <typename T>
NIBBLE_INLINE float4 four_of(const device T* row, int column, int width) {
  float4 values = float4(0.0f);
  if (width % 4 == 0) {
    if (column < width) {
      const vec<T, 4> four = *(const device vec<T, 4>*)(row + column);
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; ++i) {
        values[i] = float(four[i]);
      }
    }
  } else {
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      if (column + i < width) {
        values[i] = float(row[column + i]);
      }
    }
  }
  return values;
}

// The operands of a matrix.
template <typename T>
struct GradientOperands {
  const device T* x;
  const device T* dy;
  const device uint* words;
  device float* scales;  // [N, K / group_size]
  device float* biases;
  int N;
  int K;
  bool transpose;
};

// A square of d: rows [first_row, + 32) of w, columns [first_column, + 32).
template <typename T, int bits>
struct GradientSquare {
  static constant constexpr int kMatrices = NIBBLE_GRADIENT_SIDE / 8;

  int first_row;
  int first_column;
  uint lane;
  Accumulator<kMatrices, kMatrices> sum;

  NIBBLE_INLINE GradientSquare(int row, int column, uint lane_)
      : first_row(row), first_column(column), lane(lane_) {}

  // First of four neighbouring rows of w.
  NIBBLE_INLINE int row() const thread {
    return first_row + fragment_row(lane) * kMatrices;
  }
  // Which of the four lanes of these rows this is.
  NIBBLE_INLINE int quarter() const thread { return fragment_column(lane) / 2; }

  template <typename Rows>
  NIBBLE_INLINE void add_rows(const thread GradientOperands<T>& p,
                              const thread Rows& rows) thread {
    const device T* left = p.transpose ? p.dy : p.x;
    const device T* right = p.transpose ? p.x : p.dy;
    const int column = first_column + quarter() * 8;
    sum.clear();
    for (int i = 0; i < rows.count; i += 8) {
      Fragment a[kMatrices];
      Fragment b[kMatrices];
      float4 held[2];
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int at = i + fragment_column(lane) + e;
        held[e] = float4(0.0f);
        if (at < rows.count) {
          const RowPair pair = rows.at(at);
          const size_t source = p.transpose ? pair.dy : pair.x;
          held[e] = four_of(left + source * size_t(p.N), row(), p.N);
        }
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < kMatrices; ++j) {
        elements(a[j]) = float2(held[0][j], held[1][j]);
      }
      held[0] = float4(0.0f);
      held[1] = float4(0.0f);
      const int at = i + fragment_row(lane);
      if (at < rows.count) {
        const RowPair pair = rows.at(at);
        const size_t source = p.transpose ? pair.x : pair.dy;
        const device T* from = right + source * size_t(p.K);
        held[0] = four_of(from, column, p.K);
        held[1] = four_of(from, column + 4, p.K);
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < kMatrices; ++j) {
        const float4 four = held[j / 2];
        elements(b[j]) = float2(four[j % 2 * 2], four[j % 2 * 2 + 1]);
      }
      fence_products();
      sum.accumulate(a, b);
      fence_products();
    }
  }

  // This lane's eight codes of row `of`, times its sums of matrix row i, and
  // these sums alone.
  NIBBLE_INLINE float2 reduce_lane(const device uint* words,
                                   int i) const thread {
    const int first = quarter() * 8 * bits / 32;
    const int shift = quarter() * 8 * bits % 32;
    uint mine[share_words(8, bits)];
#pragma clang loop unroll(full)
    for (int w = 0; w < share_words(8, bits); ++w) {
      // The last share ends before the words that it need not read.
      mine[w] = words[min(first + w, bits - 1)] >> shift;
      if (of_two_words(8, bits, w)) {
        const uint next = words[min(first + w + 1, bits - 1)];
        mine[w] |= next << 1 << (31 - shift);
      }
    }
    float2 both = float2(0.0f);
#pragma clang loop unroll(full)
    for (int c = 0; c < 8; ++c) {
      const float d = elements_of(i, c / 2)[c % 2];
      const float code = float(code_in_place<bits>(mine, c)) * unplace<bits>(c);
      both = float2(fma(code, d, both.x), both.y + d);
    }
    return both;
  }

  NIBBLE_INLINE float2 elements_of(int i, int j) const thread {
    Fragment fragment = sum.fragments[i][j];
    return elements(fragment);
  }

  // Returns the two sums over the square's columns of one row of w: row() +
  // quarter().
  NIBBLE_INLINE float2
  reduce(const thread GradientOperands<T>& p) const thread {
    float2 mine = float2(0.0f);
#pragma clang loop unroll(full)
    for (int i = 0; i < kMatrices; ++i) {
      // Past the last row of w: the last row again, not stored.
      const size_t at = size_t(min(row() + i, p.N - 1));
      float2 both = reduce_lane(p.words + at * size_t(words_of(p.K, bits)) +
                                    words_of(first_column, bits),
                                i);
      both += simd_shuffle_xor(both, ushort(1));
      both += simd_shuffle_xor(both, ushort(8));
      mine = quarter() == i ? both : mine;
    }
    return mine;
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
