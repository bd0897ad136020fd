// A product by blocks of the dimension that it sums over. Threadgroup memory
// holds two blocks of x and two of w: the next one is loaded while one is
// multiplied, and one barrier for each block is enough. Where two do not fit,
// there is one, and one more barrier.
#pragma once

#include <metal_stdlib>

#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// A tile, the BM x BN of y that a threadgroup of WM x WN simdgroups computes.
// One simdgroup holds the part at (row, column).
template <int BM,  // rows of the tile
          int BN,  // columns of the tile
          int WM,  // simdgroups down
          int WN>  // simdgroups across
struct BlockTile {
  static_assert(BM % (WM * 8) == 0 && BN % (WN * 8) == 0,
                "a tile is made of whole fragments");

  Accumulator<BM / WM / 8, BN / WN / 8> sum;
  int row;  // in the tile
  int column;

  NIBBLE_INLINE BlockTile(int sgid)
      : row(sgid / WN * (BM / WM)), column(sgid % WN * (BN / WN)) {}

  // Stores the tile, which lies at (first_row, first_column) of y [M, N].
  template <typename T>
  NIBBLE_INLINE void store(const thread Epilogue<T>& epilogue,
                           device T* y,
                           int first_row,
                           int first_column,
                           int M,
                           int N,
                           uint lane) thread {
    sum.store(epilogue, y, first_row + row, first_column + column, M, N, lane);
  }
};

// The blocks in threadgroup memory.
template <bool not_transposed, typename T, int BM, int BN, int BK>
struct Blocks {
  static constant constexpr int kXStride = tile_stride<T, BK>();
  static constant constexpr int kWStride =
      not_transposed ? tile_stride<T, BN>() : kXStride;
  // Elements of one block of x and one of w.
  static constant constexpr int kStage =
      BM * kXStride + (not_transposed ? BK : BN) * kWStride;
  static constant constexpr bool kTwo =
      2 * kStage * int(sizeof(T)) <= NIBBLE_THREADGROUP_BYTES;
  static constant constexpr int kBytes =
      (kTwo ? 2 : 1) * kStage * int(sizeof(T));
};

// tile = x @ w, summed over [begin, end) in blocks of BK; the loaders say where
// a block may begin. Blocks of x have the layout [BM, BK], those of w [BN, BK],
// or [BK, BN] if `not_transposed`.
template <bool not_transposed,
          typename T,
          int BM,
          int BN,
          int BK,
          int WM,
          int WN,
          typename XLoader,
          typename WLoader>
NIBBLE_INLINE void multiply_blocks(thread BlockTile<BM, BN, WM, WN>& tile,
                                   thread XLoader& x_loader,
                                   thread WLoader& w_loader,
                                   int begin,
                                   int end,
                                   threadgroup T* memory,
                                   uint lane) {
  using Memory = Blocks<not_transposed, T, BM, BN, BK>;
  constexpr int kXStride = Memory::kXStride;
  constexpr int kWStride = Memory::kWStride;
  constexpr int kStage = Memory::kStage;

  tile.sum.clear();
  x_loader.fetch(begin);
  w_loader.fetch(begin);
  x_loader.put(memory);
  w_loader.put(memory + BM * kXStride, begin);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  // Where the current block begins. A sum, because products of integers run at
  // a quarter of the rate of sums.
  int at = 0;
  for (int k = begin; k < end; k += BK) {
    const bool more = k + BK < end;
    if (more) {
      x_loader.fetch(k + BK);
      w_loader.fetch(k + BK);
    }
    const threadgroup T* x_block = memory + at;
    const threadgroup T* w_block = x_block + BM * kXStride;
    if (not_transposed) {
      tile.sum.template multiply_not_transposed<T, BK, kXStride, kWStride>(
          x_block + tile.row * kXStride, w_block + tile.column, lane);
    } else {
      tile.sum.template multiply<T, BK, kXStride>(
          x_block + tile.row * kXStride,
          w_block + tile.column * kWStride,
          lane);
    }
    if (Memory::kTwo) {
      at = kStage - at;
    } else if (more) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (more) {
      threadgroup T* next = memory + at;
      x_loader.put(next);
      w_loader.put(next + BM * kXStride, k + BK);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}

}  // namespace nibble
