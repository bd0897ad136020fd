// y = x @ w_hat^T by tiles with K split: for a number of tiles so small that
// cores would be idle.
//
//   launch 1   threadgroup (n, m, s) computes a tile of part s of K, into
//              sums[s]                                  sums [parts, M, N]
//   launch 2   y = sums[0] + sums[1] + ... + epilogue, in this order
//
// The sums are float, and y is rounded once. The plan fixes the parts, so a sum
// has the same bits in any order of threadgroups.
#pragma once

#include <metal_stdlib>

#include "kernels/blocks.h"
#include "kernels/loader.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <typename T,
          typename Q,
          int BM,
          int BN,
          int BK,
          int WM,
          int WN>  // as Qmm
[[kernel]] void qmm_splitk(const device uint* w [[buffer(0)]],
                           const device typename Q::Scale* scales [[buffer(1)]],
                           const device typename Q::Scale* biases [[buffer(2)]],
                           const device T* x [[buffer(3)]],
                           device float* sums [[buffer(4)]],
                           constant SplitParams& params [[buffer(5)]],
                           uint3 tgid [[threadgroup_position_in_grid]],
                           uint sgid [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  static_assert(NIBBLE_SPLIT % (4 * Q::kGroupSize) == 0 &&
                    words_of(NIBBLE_SPLIT, Q::kBits) % line_words() == 0,
                "a part begins where the loader fetches lines and scales");
  constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
  constexpr int kMemory = Blocks<false, T, BM, BN, BK>::kBytes / 16;
  threadgroup uint4 memory[kMemory];
  const int M = params.M;
  const int N = params.N;
  const int K = params.K;
  const int begin = int(tgid.z) * params.part;
  const int end = min(begin + params.part, K);
  const int first_row = int(tgid.y) * BM;
  const int first_column = int(tgid.x) * BN;
  const int thread_index = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  const QuantizedMatrix<Q> weight({w, scales, biases}, N, K, 0);
  ActivationLoader<T, BM, BK, kThreads> x_loader(
      x, nullptr, first_row, M, K, thread_index);
  WeightLoader<T, Q, BN, BK, kThreads> w_loader(
      weight, first_column, N, thread_index);
  BlockTile<BM, BN, WM, WN> tile{int(sgid)};
  multiply_blocks<false, T, BM, BN, BK, WM, WN>(
      tile, x_loader, w_loader, begin, end, (threadgroup T*)memory, lane);
  tile.store(Epilogue<float>(),
             sums + size_t(tgid.z) * size_t(M) * size_t(N),
             first_row,
             first_column,
             M,
             N,
             lane);
}

// One thread for each element of y. The code depends on T alone. Its name has
// the format of the plan that it ends, because trials and verdicts belong to a
// plan.
template <typename T, typename Q>
[[kernel]] void qmm_splitk_sum(const device float* sums [[buffer(0)]],
                               const device T* bias [[buffer(1)]],
                               const device T* residual [[buffer(2)]],
                               device T* y [[buffer(3)]],
                               constant SplitParams& params [[buffer(4)]],
                               uint3 tgid [[threadgroup_position_in_grid]],
                               uint sgid [[simdgroup_index_in_threadgroup]],
                               uint lane [[thread_index_in_simdgroup]]) {
  const int column = int(tgid.x) * NIBBLE_SPLIT_SUM_THREADS +
                     int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  if (column >= params.N) {
    return;
  }
  const size_t apart = size_t(params.M) * size_t(params.N);
  const size_t at = size_t(tgid.y) * size_t(params.N) + size_t(column);
  float sum = sums[at];
  for (int part = 1; part < params.parts; ++part) {
    sum += sums[size_t(part) * apart + at];
  }
  const Epilogue<T> epilogue(bias, residual, params.epilogue, 0);
  y[at] = epilogue.finish(sum, column, at);
}

}  // namespace nibble
