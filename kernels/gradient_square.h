// A square of d = dy^T @ x, or x^T @ dy, and its sums over groups.
//
// The order of the columns of an 8x8 matrix is free, and so is that of its rows
// of w. This order gives each lane neighbours in memory: eight columns of x,
// and their codes, and four columns of dy.
//
//   column of a square   q * 8 + j * 2 + e    for matrix j, lane column 2 q + e
//   row of a square      r * 4 + i            for matrix i, lane row r
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

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

}  // namespace nibble
