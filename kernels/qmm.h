// y = x @ w_hat^T by tiles: prompts and large batches.
//
// A threadgroup computes BM x BN of y, in blocks of BK columns of x and of w:
//
//                 BK              BK               BN
//              +------+        +------+       +---------+
//           BM |  x   |     BN |  w   |    BM | sg | sg |   WM x WN
//              +------+        +------+       | sg | sg |   simdgroups
//                                             +---------+
//
// w is dequantized in float and rounded to T in the tile, as in MLX. Products
// are summed in float and rounded once, at the store.
#pragma once

#include <metal_stdlib>

#include "kernels/blocks.h"
#include "kernels/loader.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <int BM,  // rows of a tile of y
          int BN,  // columns of a tile of y
          int BK,  // columns of a block of x and of w
          int WM,  // simdgroups down a tile
          int WN>  // simdgroups across a tile
struct Qmm : Transposed {
  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return Blocks<false, T, BM, BN, BK>::kBytes;
  }

  static NIBBLE_INLINE constexpr int rows_of_tile() { return BM; }

  // Computes the tile that begins at `first_row`, without rows past p.M. Row r
  // of y comes from row indices[r] of x, or from row r if `indices` is null.
  template <typename T, typename Q>
  static NIBBLE_INLINE void rows(const thread Product<T, Q>& p,
                                 const device uint* indices,
                                 int first_row,
                                 uint3 tgid,
                                 int sgid,
                                 uint lane,
                                 threadgroup uint4* memory) {
    constexpr int kThreads = WM * WN * NIBBLE_SIMD_WIDTH;
    const int first_column = int(tgid.x) * BN;
    const int thread_index = sgid * NIBBLE_SIMD_WIDTH + int(lane);
    ActivationLoader<T, BM, BK, kThreads> x_loader(
        p.x, indices, first_row, p.M, p.weight.K, thread_index);
    WeightLoader<T, Q, BN, BK, kThreads> w_loader(
        p.weight, first_column, p.N, thread_index);
    BlockTile<BM, BN, WM, WN> tile(sgid);
    multiply_blocks<false, T, BM, BN, BK, WM, WN>(
        tile, x_loader, w_loader, 0, p.weight.K, (threadgroup T*)memory, lane);
    tile.store(p.epilogue, p.y, first_row, first_column, p.M, p.N, lane);
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4* memory) {
    rows(p, nullptr, int(tgid.y) * BM, tgid, sgid, lane, memory);
  }
};

}  // namespace nibble
