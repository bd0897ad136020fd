// Tiles of 8x8 simdgroup matrices, in float.
//
// Each lane holds two neighbouring elements of one row of a fragment. MLX
// proves this map on every Apple GPU (steel/gemm/mma.h, get_coord):
//
//   row   columns 0 1    2 3    4 5    6 7
//    0    lane    0      1      8      9
//    1            2      3     10     11
//    2            4      5     12     13
//    3            6      7     14     15
//    4           16     17     24     25
//   ...
#pragma once

#include <metal_simdgroup>
#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "kernels/epilogue.h"
#include "kernels/shared.h"

// 1: a barrier without memory stands between the loads of fragments and their
// products, as in MLX and llama.cpp. It keeps the compiler from hoisting all
// loads, which may spill registers. Nobody has timed it here: the host sets it
// before the text (NIBBLE_SIMDGROUP_BARRIERS).
#ifndef NIBBLE_FENCES
#define NIBBLE_FENCES 0
#endif

namespace nibble {

using namespace metal;

// Row of the two elements that a lane holds.
NIBBLE_INLINE int fragment_row(uint lane) {
  return int(((lane >> 4) << 2) | ((lane >> 1) & 3));
}

// Column of the first of these two elements.
NIBBLE_INLINE int fragment_column(uint lane) {
  return int((((lane >> 3) & 1) << 2) | ((lane & 1) << 1));
}

using Fragment = simdgroup_matrix<float, 8, 8>;

NIBBLE_INLINE thread float2& elements(thread Fragment& fragment) {
  return reinterpret_cast<thread float2&>(fragment.thread_elements());
}

NIBBLE_INLINE void fence_products() {
  if (NIBBLE_FENCES) {
    simdgroup_barrier(mem_flags::mem_none);
  }
}

// Loads `count` fragments, one below the other. `from` points to this lane's
// elements of the first one.
template <typename T, int count, int stride>
NIBBLE_INLINE void load_rows(thread Fragment* fragments,
                             const threadgroup T* from) {
#pragma clang loop unroll(full)
  for (int i = 0; i < count; ++i) {
    const vec<T, 2> pair =
        *(const threadgroup vec<T, 2>*)(from + i * 8 * stride);
    elements(fragments[i]) = float2(float(pair[0]), float(pair[1]));
  }
}

// The part of y that one simdgroup holds: TM x TN fragments.
template <int TM, int TN>
struct Accumulator {
  Fragment fragments[TM][TN];

  NIBBLE_INLINE void clear() thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < TM; ++i) {
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        fragments[i][j] = Fragment(0.0f);
      }
    }
  }

  // Writes this lane's elements to threadgroup memory, NIBBLE_SIMD_WIDTH apart
  // from one fragment to the next.
  NIBBLE_INLINE void save(threadgroup float2* to) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < TM * TN; ++i) {
      to[i * NIBBLE_SIMD_WIDTH] = elements(fragments[i / TN][i % TN]);
    }
  }

  // Adds the elements that another simdgroup saved.
  NIBBLE_INLINE void add(const threadgroup float2* from) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < TM * TN; ++i) {
      thread Fragment& fragment = fragments[i / TN][i % TN];
      elements(fragment) = elements(fragment) + from[i * NIBBLE_SIMD_WIDTH];
    }
  }

  // += x_tile [TM * 8, BK] @ w_tile [TN * 8, BK]^T, rows `stride` apart.
  template <typename T, int BK, int stride>
  NIBBLE_INLINE void multiply(const threadgroup T* x_tile,
                              const threadgroup T* w_tile,
                              uint lane) thread {
    const int row = fragment_row(lane);
    const int column = fragment_column(lane);
#pragma clang loop unroll(full)
    for (int k = 0; k < BK; k += 8) {
      Fragment a[TM];
      Fragment b[TN];
      load_rows<T, TM, stride>(a, x_tile + row * stride + k + column);
      // The transpose of w: this lane's row is one of K, its columns two of N.
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        const threadgroup T* from =
            w_tile + (j * 8 + column) * stride + k + row;
        elements(b[j]) = float2(float(from[0]), float(from[stride]));
      }
      fence_products();
      accumulate(a, b);
      fence_products();
    }
  }

  // += x_tile [TM * 8, BK] @ w_tile [BK, TN * 8].
  template <typename T, int BK, int x_stride, int w_stride>
  NIBBLE_INLINE void multiply_not_transposed(const threadgroup T* x_tile,
                                             const threadgroup T* w_tile,
                                             uint lane) thread {
    const int row = fragment_row(lane);
    const int column = fragment_column(lane);
#pragma clang loop unroll(full)
    for (int k = 0; k < BK; k += 8) {
      Fragment a[TM];
      Fragment b[TN];
      load_rows<T, TM, x_stride>(a, x_tile + row * x_stride + k + column);
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        load_rows<T, 1, w_stride>(
            b + j, w_tile + (k + row) * w_stride + j * 8 + column);
      }
      fence_products();
      accumulate(a, b);
      fence_products();
    }
  }

  NIBBLE_INLINE void accumulate(thread Fragment* a, thread Fragment* b) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < TM; ++i) {
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        simdgroup_multiply_accumulate(
            fragments[i][j], a[i], b[j], fragments[i][j]);
      }
    }
  }

  // Rounds to T and stores at row `first_row` and column `first_column` of
  // y [M, N], without rows and columns past its edges.
  template <typename T>
  NIBBLE_INLINE void store(const thread Epilogue<T>& epilogue,
                           device T* y,
                           int first_row,
                           int first_column,
                           int M,
                           int N,
                           uint lane) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < TM; ++i) {
      const int row = first_row + i * 8 + fragment_row(lane);
      if (row >= M) {
        continue;
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        const int column = first_column + j * 8 + fragment_column(lane);
        const float2 pair = elements(fragments[i][j]);
        const size_t at = size_t(row) * size_t(N) + size_t(column);
        if (column < N) {
          y[at] = epilogue.finish(pair[0], column, at);
        }
        if (column + 1 < N) {
          y[at + 1] = epilogue.finish(pair[1], column + 1, at + 1);
        }
      }
    }
  }
};

}  // namespace nibble
