// y = x @ w_hat by tiles: w not transposed, as in a backward pass.
//
// x [M, N], w_hat [N, K], y [M, K]. A threadgroup computes BM x BN of y; the
// sum runs over blocks of BK rows of w, w_hat rounded to T as in qmm:
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

#include "kernels/blocks.h"
#include "kernels/dequant.h"
#include "kernels/loader.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Rows [first_row, first_row + rows) of x [M, N], BK columns at a time, an
// element to a load: rows of any length begin at any element.
template <typename T, int rows, int BK, int threads>
struct ElementLoader {
  static_assert(threads % BK == 0, "a thread stays in one column");

  int column;
  int row;  // of the first load, in the tile
  int N;
  const device T* sources[rows * BK / threads];
  T held[rows * BK / threads];

  ElementLoader(const device T* x,
                const device uint* indices,
                int first_row,
                int M,
                int N_,
                int thread_index)
      : column(thread_index % BK), row(thread_index / BK), N(N_) {
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int at = min(first_row + row + i * (threads / BK), M - 1);
      sources[i] = row_of(x, indices, at, N) + column;
    }
  }

  void fetch(int n) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      held[i] = T(0.0f);
      if (n + column < N) {
        held[i] = sources[i][n];
      }
    }
  }

  void put(threadgroup T* tile) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int target = row + i * (threads / BK);
      tile[target * tile_stride<T, BK>() + column] = held[i];
    }
  }
};

// Codes that one thread dequantizes of a block of `codes`: an equal share, but
// never less than a run of whole words.
constexpr int codes_a_thread(int codes, int threads, int bits) {
  return codes / threads < run_codes(bits) ? run_codes(bits) : codes / threads;
}

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

  void put(threadgroup T* tile, int) const thread {
    constexpr int count = codes_a_thread(BK * BN, threads, bits);
    if (active) {
      put_dequantized<T, bits, count>(held, affine, tile + offset);
    }
  }
};

template <int BM, int BN, int BK, int WM, int WN>
struct QmmN : Straight {
  static int first_row(uint3 tgid) { return int(tgid.y) * BM; }

  // Rows [begin, end) of those that are this threadgroup's; row r of y from row
  // indices[r] of x, or from row r if there are none.
  template <typename T, typename S, int bits, int group_size, bool symmetric>
  static void rows(const thread Product<T, S, bits, group_size, symmetric>& p,
                   const device uint* indices,
                   int begin,
                   int end,
                   uint3 tgid,
                   int sgid,
                   uint lane,
                   threadgroup uint4* memory) {
    constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
    const int first_column = int(tgid.x) * BN;
    const int thread_index = sgid * NIBBLE_SIMD_WIDTH + int(lane);
    ElementLoader<T, BM, BK, kThreads> x_loader(
        p.x, indices, first_row(tgid), p.M, p.N, thread_index);
    RowLoader<T, S, bits, group_size, symmetric, BK, BN, kThreads> w_loader(
        p.weight, first_column, p.N, thread_index);
    BlockTile<BM, BN, WM, WN> tile(sgid);
    multiply_blocks<true, T, BM, BN, BK, WM, WN>(
        tile, x_loader, w_loader, 0, p.N, (threadgroup T*)memory, lane);
    tile.store(p.epilogue,
               p.y,
               first_row(tgid),
               first_column,
               begin,
               end,
               p.weight.K,
               lane);
  }

  template <typename T, typename S, int bits, int group_size, bool symmetric>
  static void run(const thread Product<T, S, bits, group_size, symmetric>& p,
                  uint3 tgid,
                  int sgid,
                  uint lane,
                  threadgroup uint4* memory) {
    rows(p, nullptr, 0, p.M, tgid, sgid, lane, memory);
  }
};

}  // namespace nibble
