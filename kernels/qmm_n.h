// y = x @ w_hat by tiles: w not transposed, as in a backward pass.
//
// x [M, N], w_hat [N, K], y [M, K]. A threadgroup computes BM x BN of y; the
// sum runs over blocks of BK rows of w. As in qmm, threadgroup memory holds
// two blocks each of x and w, w_hat rounded to T, and one barrier a block is
// enough.
//
//                 BK                BN                 BN
//              +------+        +----------+       +---------+
//           BM |  x   |     BK |    w     |    BM | sg | sg |
//              +------+        +----------+       | sg | sg |
//                                                 +---------+
//
// N may be anything: past it, x is zero.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Rows [first_row, first_row + rows) of x [M, N], BK columns at a time, an
// element to a load: rows of any length begin at any element.
template <typename T, int rows, int BK, int threads>
struct ElementLoader {
  const device T* x;
  int N;
  int first_row;
  int last_row;
  int thread_index;
  T held[rows * BK / threads];

  ElementLoader(
      const device T* x_, int first_row_, int M, int N_, int thread_index_)
      : x(x_),
        N(N_),
        first_row(first_row_),
        last_row(M - 1),
        thread_index(thread_index_) {}

  void fetch(int n) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int at = i * threads + thread_index;
      const int row = min(first_row + at / BK, last_row);
      const int column = n + at % BK;
      held[i] = T(0.0f);
      if (column < N) {
        held[i] = x[size_t(row) * size_t(N) + size_t(column)];
      }
    }
  }

  void put(threadgroup T* tile) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int at = i * threads + thread_index;
      tile[at / BK * tile_stride<T, BK>() + at % BK] = held[i];
    }
  }
};

// Columns [first_column, first_column + BN) of w [N, K], BK rows at a time.
template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int BK,
          int BN,
          int threads>
struct RowLoader {
  static_assert(BN % codes_a_thread(BK * BN, threads, bits) == 0,
                "a thread stays in one row");
  static_assert(group_size % codes_a_thread(BK * BN, threads, bits) == 0,
                "a thread's codes share a group");

  QuantizedMatrix<S, bits, group_size, symmetric> weight;
  bool active;  // there may be fewer runs than threads, or no such columns
  int last_row;
  int row;
  int column;
  int offset;
  float2 affine;
  uint held[words_of(codes_a_thread(BK * BN, threads, bits), bits)];

  RowLoader(
      const thread QuantizedMatrix<S, bits, group_size, symmetric>& weight_,
      int first_column,
      int N,
      int thread_index)
      : weight(weight_), last_row(N - 1), affine(float2(0.0f)) {
    constexpr int count = codes_a_thread(BK * BN, threads, bits);
    row = thread_index / (BN / count);
    column = first_column + thread_index % (BN / count) * count;
    active = row < BK;
    offset = row * tile_stride<T, BN>() + column - first_column;
    for (int i = 0; i < words_of(count, bits); ++i) {
      held[i] = 0;
    }
  }

  void fetch(int n) thread {
    constexpr int count = codes_a_thread(BK * BN, threads, bits);
    if (active && column < weight.K) {
      const int source = min(n + row, last_row);
      load_words<words_of(count, bits)>(weight.words_at(source, column), held);
      affine = weight.affine_at(source, column);
    }
  }

  void put(threadgroup T* tile) const thread {
    constexpr int count = codes_a_thread(BK * BN, threads, bits);
    if (active) {
      put_dequantized<T, bits, count>(held, affine, tile + offset);
    }
  }
};

template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int BM,
          int BN,
          int BK,
          int WM,
          int WN>
[[kernel]] void qmm_n(const device uint* w [[buffer(0)]],
                      const device S* scales [[buffer(1)]],
                      const device S* biases [[buffer(2)]],
                      const device T* x [[buffer(3)]],
                      device T* y [[buffer(4)]],
                      constant MatmulParams& params [[buffer(5)]],
                      threadgroup T* tiles [[threadgroup(0)]],
                      uint3 tgid [[threadgroup_position_in_grid]],
                      uint sgid [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
  constexpr int kXStride = tile_stride<T, BK>();
  constexpr int kWStride = tile_stride<T, BN>();
  constexpr int kStage = BM * kXStride + BK * kWStride;
  constexpr int TM = BM / WM / 8;
  constexpr int TN = BN / WN / 8;

  const int M = params.M;
  const int N = params.N;
  const int K = params.K;
  const int first_row = int(tgid.y) * BM;
  const int first_column = int(tgid.x) * BN;
  x += size_t(tgid.z) * size_t(M) * size_t(N);
  y += size_t(tgid.z) * size_t(M) * size_t(K);
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, N, K, weight_of(params, tgid.z));

  const int thread_index = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  ElementLoader<T, BM, BK, kThreads> x_loader(x, first_row, M, N, thread_index);
  RowLoader<T, S, bits, group_size, symmetric, BK, BN, kThreads> w_loader(
      weight, first_column, N, thread_index);

  const int sg_row = int(sgid) / WN * (TM * 8);
  const int sg_column = int(sgid) % WN * (TN * 8);
  Accumulator<TM, TN> sum;
  sum.clear();

  x_loader.fetch(0);
  w_loader.fetch(0);
  x_loader.put(tiles);
  w_loader.put(tiles + BM * kXStride);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int stage = 0;
  for (int n = 0; n < N; n += BK) {
    const bool more = n + BK < N;
    if (more) {
      x_loader.fetch(n + BK);
      w_loader.fetch(n + BK);
    }
    const threadgroup T* x_tile = tiles + stage * kStage;
    const threadgroup T* w_tile = x_tile + BM * kXStride;
    sum.template multiply_straight<T, BK, kXStride, kWStride>(
        x_tile + sg_row * kXStride, w_tile + sg_column, lane);
    stage = 1 - stage;
    if (more) {
      threadgroup T* next = tiles + stage * kStage;
      x_loader.put(next);
      w_loader.put(next + BM * kXStride);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
  sum.store(Epilogue<T>(),
            y,
            first_row + sg_row,
            first_column + sg_column,
            0,
            M,
            K,
            lane);
}

}  // namespace nibble
