// y = x @ w_hat^T by tiles: prompts and large batches.
//
// A threadgroup computes BM x BN of y. Blocks of BK columns of x and of w
// pass through threadgroup memory, which holds two of each: while one is
// multiplied the next is on its way, and one barrier a block is enough.
//
//                 BK              BK               BN
//              +------+        +------+       +---------+
//           BM |  x   |     BN |  w   |    BM | sg | sg |   WM x WN
//              +------+        +------+       | sg | sg |   simdgroups
//                                             +---------+
//
// w is dequantized in float and rounded to T in the tile, as MLX does; the
// products are summed in float and rounded once, at the store.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// sum += x @ w_hat^T over all of K, by way of threadgroup memory.
template <typename T,
          int BM,
          int BN,
          int BK,
          int WM,
          int WN,
          typename XLoader,
          typename WLoader>
inline void multiply_blocks(thread Accumulator<BM / WM / 8, BN / WN / 8>& sum,
                            thread XLoader& x_loader,
                            thread WLoader& w_loader,
                            int K,
                            threadgroup T* tiles,
                            int sgid,
                            uint lane) {
  constexpr int kStride = tile_stride<T, BK>();
  constexpr int kStage = (BM + BN) * kStride;
  const int sg_row = sgid / WN * (BM / WM);
  const int sg_column = sgid % WN * (BN / WN);

  x_loader.fetch(0);
  w_loader.fetch(0);
  x_loader.put(tiles);
  w_loader.put(tiles + BM * kStride, 0);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int stage = 0;
  for (int k = 0; k < K; k += BK) {
    const bool more = k + BK < K;
    if (more) {
      x_loader.fetch(k + BK);
      w_loader.fetch(k + BK);
    }
    const threadgroup T* x_tile = tiles + stage * kStage;
    const threadgroup T* w_tile = x_tile + BM * kStride;
    sum.template multiply<T, BK, kStride>(
        x_tile + sg_row * kStride, w_tile + sg_column * kStride, lane);
    stage = 1 - stage;
    if (more) {
      threadgroup T* next = tiles + stage * kStage;
      x_loader.put(next);
      w_loader.put(next + BM * kStride, k + BK);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}

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
[[kernel]] void qmm(const device uint* w [[buffer(0)]],
                    const device S* scales [[buffer(1)]],
                    const device S* biases [[buffer(2)]],
                    const device T* x [[buffer(3)]],
                    const device T* bias [[buffer(4)]],
                    const device T* residual [[buffer(5)]],
                    device T* y [[buffer(6)]],
                    constant MatmulParams& params [[buffer(7)]],
                    threadgroup T* tiles [[threadgroup(0)]],
                    uint3 tgid [[threadgroup_position_in_grid]],
                    uint sgid [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
  constexpr int TM = BM / WM / 8;
  constexpr int TN = BN / WN / 8;
  static_assert(TM * WM * 8 == BM && TN * WN * 8 == BN && BK % 8 == 0,
                "a tile is made of whole fragments");

  const int M = params.M;
  const int N = params.N;
  const int K = params.K;
  const int first_row = int(tgid.y) * BM;
  const int first_column = int(tgid.x) * BN;
  const size_t first_x = size_t(tgid.z) * size_t(M);
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, N, K, weight_of(params, tgid.z));

  const int thread_index = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  ActivationLoader<T, BM, BK, kThreads> x_loader(
      x + first_x * size_t(K), first_row, M, K, thread_index);
  WeightLoader<T, S, bits, group_size, symmetric, BN, BK, kThreads> w_loader(
      weight, first_column, N, thread_index);
  Accumulator<TM, TN> sum;
  sum.clear();
  multiply_blocks<T, BM, BN, BK, WM, WN>(
      sum, x_loader, w_loader, K, tiles, int(sgid), lane);
  const size_t y_batch = first_x * size_t(N);
  const Epilogue<T> epilogue(bias, residual, params.epilogue, y_batch);
  sum.store(epilogue,
            y + y_batch,
            first_row + int(sgid) / WN * (TM * 8),
            first_column + int(sgid) % WN * (TN * 8),
            0,
            M,
            N,
            lane);
}

}  // namespace nibble
