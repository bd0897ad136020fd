// y = x @ w_hat^T by tiles of half, for x in bfloat: opt-in.
//
// GPUs before M3 have no bfloat: there, each fragment that qmm reads from its
// tiles costs shifts. Here x and w_hat become half once, as they enter a tile.
// w_hat then keeps 11 bits rather than 8, and x all of its 8; but half ends at
// 65504, and below 2^-14 has only the multiples of 2^-24. So a tile of y is
// computed in half on trial, while every thread watches what it puts, and if
// any of the threadgroup saw numbers that do not fit (fits_half(): a row of x,
// a group of w), it is computed again in bfloat, as qmm does.
#pragma once

#include <metal_math>
#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/qmm.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// ActivationLoader, from bfloat to half.
template <int rows, int BK, int threads>
struct HalfActivationLoader {
  ActivationLoader<bfloat, rows, BK, threads> loader;
  float largest[activation_passes<bfloat, rows, BK, threads>()];  // |x| of a row

  HalfActivationLoader(
      const device bfloat* x, int first_row, int M, int K, int thread_index)
      : loader(x, first_row, M, K, thread_index) {
    for (int p = 0; p < activation_passes<bfloat, rows, BK, threads>(); ++p) {
      largest[p] = 0.0f;
    }
  }

  void fetch(int k) thread { loader.fetch(k); }

  void put(threadgroup half* tile) thread {
    constexpr int passes = activation_passes<bfloat, rows, BK, threads>();
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      const int target = loader.row + p * (rows / passes);
      threadgroup half* to =
          tile + target * tile_stride<half, BK>() + loader.column;
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; i += 2) {
        vec<half, 4> values;
#pragma clang loop unroll(full)
        for (int j = 0; j < 2; ++j) {
          // Two bfloats, each the upper half of a float.
          const uint pair = loader.held[p][i + j];
          const float low = as_type<float>(pair << 16);
          const float high = as_type<float>(pair & 0xffff0000u);
          largest[p] = max(largest[p], max(abs(low), abs(high)));
          values[2 * j] = half(low);
          values[2 * j + 1] = half(high);
        }
        *(threadgroup vec<half, 4>*)(to + 2 * i) = values;
      }
    }
  }

  // Of the rows that this thread had a share in.
  bool fit_half() const thread {
    constexpr int kThreadsARow = BK / elements_at_once<bfloat>();
    bool fit = true;
#pragma clang loop unroll(full)
    for (int p = 0; p < activation_passes<bfloat, rows, BK, threads>(); ++p) {
      float row = largest[p];
#pragma clang loop unroll(full)
      for (int mask = 1; mask < kThreadsARow; mask *= 2) {
        row = max(row, simd_shuffle_xor(row, ushort(mask)));
      }
      fit = fit && fits_half(row);
    }
    return fit;
  }
};

// A WeightLoader that watches the groups it passes.
template <typename Loader, int group_size>
struct WatchedWeightLoader {
  Loader loader;
  bool fit;

  WatchedWeightLoader(const thread Loader& loader_)
      : loader(loader_), fit(true) {}

  void fetch(int k) thread {
    loader.fetch(k);
    if (k % group_size == 0) {
      fit = fit && loader.fit_half();
    }
  }

  void put(threadgroup half* tile, int k) thread { loader.put(tile, k); }
};

// Whether `flag` is set in any thread of the threadgroup. All must ask, and
// `scratch`, a word for each simdgroup, may be in use until they do.
template <int simdgroups>
inline bool any_thread(bool flag,
                       threadgroup uint* scratch,
                       int sgid,
                       uint lane) {
  const uint mine = simd_max(uint(flag));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (lane == 0) {
    scratch[sgid] = mine;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  uint any = 0;
  for (int i = 0; i < simdgroups; ++i) {
    any |= scratch[i];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  return any != 0;
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
[[kernel]] void qmm_half(const device uint* w [[buffer(0)]],
                         const device S* scales [[buffer(1)]],
                         const device S* biases [[buffer(2)]],
                         const device T* x [[buffer(3)]],
                         const device T* bias [[buffer(4)]],
                         const device T* residual [[buffer(5)]],
                         device T* y [[buffer(6)]],
                         constant MatmulParams& params [[buffer(7)]],
                         threadgroup half* tiles [[threadgroup(0)]],
                         uint3 tgid [[threadgroup_position_in_grid]],
                         uint sgid [[simdgroup_index_in_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
  constexpr int TM = BM / WM / 8;
  constexpr int TN = BN / WN / 8;
  static_assert(is_same_v<T, bfloat>, "half needs no other form, float no tile");

  const int M = params.M;
  const int N = params.N;
  const int K = params.K;
  const int first_row = int(tgid.y) * BM;
  const int first_column = int(tgid.x) * BN;
  const size_t first_x = size_t(tgid.z) * size_t(M);
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, N, K, weight_of(params, tgid.z));
  x += first_x * size_t(K);

  using HalfWeights =
      WeightLoader<half, S, bits, group_size, symmetric, BN, BK, kThreads>;
  const int thread_index = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  HalfActivationLoader<BM, BK, kThreads> x_loader(
      x, first_row, M, K, thread_index);
  WatchedWeightLoader<HalfWeights, group_size> w_loader(
      HalfWeights(weight, first_column, N, thread_index));
  Accumulator<TM, TN> sum;
  sum.clear();
  multiply_blocks<half, BM, BN, BK, WM, WN>(
      sum, x_loader, w_loader, K, tiles, int(sgid), lane);

  const bool fit = x_loader.fit_half() && w_loader.fit;
  if (any_thread<WM * WN>(
          !fit, (threadgroup uint*)tiles, int(sgid), lane)) {
    ActivationLoader<T, BM, BK, kThreads> x_again(
        x, first_row, M, K, thread_index);
    WeightLoader<T, S, bits, group_size, symmetric, BN, BK, kThreads> w_again(
        weight, first_column, N, thread_index);
    sum.clear();
    multiply_blocks<T, BM, BN, BK, WM, WN>(
        sum, x_again, w_again, K, (threadgroup T*)tiles, int(sgid), lane);
  }
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
