// y = x @ w_hat^T by tiles of half, for x in bfloat: opt-in.
//
// GPUs before M3 have no bfloat: each fragment that qmm reads from its tiles
// costs shifts there. Here x and w_hat become half once, as they enter a tile.
// w_hat then keeps 11 bits instead of 8, and x all its 8. But half ends at
// 65504, and below 2^-14 has only the multiples of 2^-24. So a tile of y is
// first computed in half, while every thread checks the numbers it puts. If a
// row of x or a group of w does not fit (fits_half()), the threadgroup computes
// the tile again in bfloat, as qmm does.
#pragma once

#include <metal_math>
#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/blocks.h"
#include "kernels/loader.h"
#include "kernels/product.h"
#include "kernels/qmm.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// An ActivationLoader from bfloat to half.
template <int rows, int BK, int threads>
struct HalfActivationLoader {
  ActivationLoader<bfloat, rows, BK, threads> loader;
  float
      largest[activation_passes<bfloat, rows, BK, threads>()];  // |x| of a row

  NIBBLE_INLINE HalfActivationLoader(
      const device bfloat* x, int first_row, int M, int K, int thread_index)
      : loader(x, nullptr, first_row, M, K, thread_index) {
    for (int p = 0; p < activation_passes<bfloat, rows, BK, threads>(); ++p) {
      largest[p] = 0.0f;
    }
  }

  NIBBLE_INLINE void fetch(int k) thread { loader.fetch(k); }

  NIBBLE_INLINE void put(threadgroup half* tile) thread {
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

  // True if the rows that this thread loaded in part may become half.
  NIBBLE_INLINE bool fit_half() const thread {
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

// A WeightLoader that checks the groups it reads.
template <typename Loader, int group_size>
struct WatchedWeightLoader {
  Loader loader;
  bool fit;

  NIBBLE_INLINE WatchedWeightLoader(const thread Loader& loader_)
      : loader(loader_), fit(true) {}

  NIBBLE_INLINE void fetch(int k) thread {
    loader.fetch(k);
    if (k % group_size == 0) {
      fit = fit && loader.fit_half();
    }
  }

  NIBBLE_INLINE void put(threadgroup half* tile, int k) thread {
    loader.put(tile, k);
  }
};

// True if `flag` is set in any thread of the threadgroup. All threads must call
// it. `scratch`, a word for each simdgroup, may be in use until they do.
template <int simdgroups>
NIBBLE_INLINE bool any_thread(bool flag,
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

template <int BM, int BN, int BK, int WM, int WN>  // as Qmm
struct QmmHalf : Transposed {
  // Half and bfloat have one size.
  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return Blocks<false, T, BM, BN, BK>::kBytes;
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4* memory) {
    static_assert(is_same_v<T, bfloat>,
                  "half is a tile already, and float has none");
    constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
    using HalfWeights = WeightLoader<half, Q, BN, BK, kThreads>;
    const int K = p.weight.K;
    const int first_row = int(tgid.y) * BM;
    const int first_column = int(tgid.x) * BN;
    const int thread_index = sgid * NIBBLE_SIMD_WIDTH + int(lane);
    HalfActivationLoader<BM, BK, kThreads> x_loader(
        p.x, first_row, p.M, K, thread_index);
    const HalfWeights weights(p.weight, first_column, p.N, thread_index);
    WatchedWeightLoader<HalfWeights, Q::kGroupSize> w_loader(weights);
    BlockTile<BM, BN, WM, WN> tile(sgid);
    multiply_blocks<false, half, BM, BN, BK, WM, WN>(
        tile, x_loader, w_loader, 0, K, (threadgroup half*)memory, lane);

    const bool fit = x_loader.fit_half() && w_loader.fit;
    if (any_thread<WM * WN>(!fit, (threadgroup uint*)memory, sgid, lane)) {
      Qmm<BM, BN, BK, WM, WN>::run(p, tgid, sgid, lane, memory);
    } else {
      tile.store(p.epilogue, p.y, first_row, first_column, p.M, p.N, lane);
    }
  }
};

}  // namespace nibble
