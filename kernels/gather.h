// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T: each product chooses its rows of x and
// its matrix of weights, as the experts of a mixture do.
//
// x [X, M, K], w_hat [E, N, K], lhs and rhs [B], y [B, M, N].
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/qmm.h"
#include "kernels/qmm_skinny.h"
#include "kernels/qmv.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// One row of x at a time.
template <typename T, typename S, int bits, int group_size, bool symmetric>
[[kernel]] void gather_qmv(const device uint* w [[buffer(0)]],
                           const device S* scales [[buffer(1)]],
                           const device S* biases [[buffer(2)]],
                           const device T* x [[buffer(3)]],
                           const device uint* lhs [[buffer(4)]],
                           const device uint* rhs [[buffer(5)]],
                           device T* y [[buffer(6)]],
                           constant GatherParams& params [[buffer(7)]],
                           uint3 tgid [[threadgroup_position_in_grid]],
                           uint sgid [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const int first_row =
      (int(tgid.x) * NIBBLE_QMV_SIMDGROUPS + int(sgid)) * NIBBLE_QMV_ROWS;
  if (first_row >= params.N) {
    return;
  }
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, params.N, params.K, int(rhs[tgid.z]));
  const size_t x_row = size_t(lhs[tgid.z]) * size_t(params.M) + size_t(tgid.y);
  const size_t y_row = size_t(tgid.z) * size_t(params.M) + size_t(tgid.y);
  float sums[NIBBLE_QMV_ROWS];
  qmv_rows<T, S, bits, group_size, symmetric, NIBBLE_SIMD_WIDTH>(
      weight,
      x + x_row * size_t(params.K),
      params.N,
      first_row,
      int(lane),
      sums);
  store_rows(sums,
             Epilogue<T>(),
             y + y_row * size_t(params.N),
             params.N,
             first_row,
             int(lane));
}

// Some rows of x with one matrix of weights.
template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int BM,
          int BN,
          int WK>
[[kernel]] void gather_qmm_skinny(const device uint* w [[buffer(0)]],
                                  const device S* scales [[buffer(1)]],
                                  const device S* biases [[buffer(2)]],
                                  const device T* x [[buffer(3)]],
                                  const device uint* lhs [[buffer(4)]],
                                  const device uint* rhs [[buffer(5)]],
                                  device T* y [[buffer(6)]],
                                  constant GatherParams& params [[buffer(7)]],
                                  threadgroup float2* scratch
                                  [[threadgroup(0)]],
                                  uint3 tgid [[threadgroup_position_in_grid]],
                                  uint sgid [[simdgroup_index_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]]) {
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, params.N, params.K, int(rhs[tgid.z]));
  const size_t first_x = size_t(lhs[tgid.z]) * size_t(params.M);
  const size_t first_y = size_t(tgid.z) * size_t(params.M);
  qmm_skinny_tile<T, S, bits, group_size, symmetric, BM, BN, WK>(
      weight,
      x + first_x * size_t(params.K),
      Epilogue<T>(),
      y + first_y * size_t(params.N),
      params.M,
      params.N,
      int(tgid.y) * BM,
      int(tgid.x) * BN,
      scratch,
      int(sgid),
      lane);
}

// Many products of one row (M = 1) whose rhs is sorted: a tile takes BM of
// them, and goes through K once for each expert among them:
//
//   b     0 1 2 3 4 5 6 7 ...           BM = 8
//   rhs   2 2 2 2 2 7 7 9 ...           three times: rows 0-4, 5-6 and 7
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
[[kernel]] void gather_qmm(const device uint* w [[buffer(0)]],
                           const device S* scales [[buffer(1)]],
                           const device S* biases [[buffer(2)]],
                           const device T* x [[buffer(3)]],
                           const device uint* lhs [[buffer(4)]],
                           const device uint* rhs [[buffer(5)]],
                           device T* y [[buffer(6)]],
                           constant GatherParams& params [[buffer(7)]],
                           threadgroup T* tiles [[threadgroup(0)]],
                           uint3 tgid [[threadgroup_position_in_grid]],
                           uint sgid [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
  constexpr int TM = BM / WM / 8;
  constexpr int TN = BN / WN / 8;
  const int B = params.B;
  const int N = params.N;
  const int K = params.K;
  const int first_row = int(tgid.y) * BM;
  const int first_column = int(tgid.x) * BN;
  const int last_row = min(first_row + BM, B);
  const int thread_index = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  ActivationLoader<T, BM, BK, kThreads> x_loader(
      x, first_row, B, K, thread_index);
  x_loader.redirect(x, lhs, first_row, B, K);

  int begin = first_row;
  while (begin < last_row) {
    const uint expert = rhs[begin];
    int end = begin + 1;
    while (end < last_row && rhs[end] == expert) {
      ++end;
    }
    const QuantizedMatrix<S, bits, group_size, symmetric> weight(
        w, scales, biases, N, K, int(expert));
    WeightLoader<T, S, bits, group_size, symmetric, BN, BK, kThreads> w_loader(
        weight, first_column, N, thread_index);
    Accumulator<TM, TN> sum;
    sum.clear();
    multiply_blocks<T, BM, BN, BK, WM, WN>(
        sum, x_loader, w_loader, K, tiles, int(sgid), lane);
    sum.store(Epilogue<T>(),
              y,
              first_row + int(sgid) / WN * (TM * 8),
              first_column + int(sgid) % WN * (TN * 8),
              begin,
              end,
              N,
              lane);
    // Another expert's blocks go where these may still be read.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    begin = end;
  }
}

}  // namespace nibble
