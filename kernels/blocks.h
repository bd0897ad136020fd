// A product by blocks of the dimension that it sums over: they pass through
// threadgroup memory, which holds two each of x and w. While one is multiplied
// the next is on its way, and one barrier a block is enough. Where two do not
// fit there is one, and a barrier more.
#pragma once

#include <metal_stdlib>

#include "kernels/epilogue.h"
#include "kernels/loader.h"
#include "kernels/mma.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// What a threadgroup of WM x WN simdgroups computes of y, BM x BN: where the
// simdgroups stand in it, and what each of them holds.
template <int BM, int BN, int WM, int WN>
struct BlockTile {
  static_assert(BM % (WM * 8) == 0 && BN % (WN * 8) == 0,
                "a tile is made of whole fragments");

  Accumulator<BM / WM / 8, BN / WN / 8> sum;
  int row;  // of the simdgroup's part, in the tile
  int column;

  BlockTile(int sgid)
      : row(sgid / WN * (BM / WM)), column(sgid % WN * (BN / WN)) {}

  // The tile at (first_row, first_column) of y [.., N], rows [begin, end) of
  // it alone.
  template <typename T>
  void store(const thread Epilogue<T>& epilogue,
             device T* y,
             int first_row,
             int first_column,
             int begin,
             int end,
             int N,
             uint lane) thread {
    sum.store(epilogue,
              y,
              first_row + row,
              first_column + column,
              begin,
              end,
              N,
              lane);
  }
};

// tile = x @ w, over [begin, end) of what it sums over, blocks of BK of it at a
// time; loaders say where they may begin. Blocks of x lie as [BM, BK], those of
// w as [BN, BK], or as [BK, BN] if `not_transposed`.
template <bool not_transposed,
          typename T,
          int BM,
          int BN,
          int BK,
          int WM,
          int WN,
          typename XLoader,
          typename WLoader>
inline void multiply_blocks(thread BlockTile<BM, BN, WM, WN>& tile,
                            thread XLoader& x_loader,
                            thread WLoader& w_loader,
                            int begin,
                            int end,
                            threadgroup T* memory,
                            uint lane) {
  constexpr int kXStride = tile_stride<T, BK>();
  constexpr int kWStride = not_transposed ? tile_stride<T, BN>() : kXStride;
  constexpr int kStage = BM * kXStride + (not_transposed ? BK : BN) * kWStride;
  constexpr bool kTwo = 2 * kStage * int(sizeof(T)) <= NIBBLE_THREADGROUP_BYTES;

  tile.sum.clear();
  x_loader.fetch(begin);
  w_loader.fetch(begin);
  x_loader.put(memory);
  w_loader.put(memory + BM * kXStride, begin);
  threadgroup_barrier(mem_flags::mem_threadgroup);

  int stage = 0;
  for (int k = begin; k < end; k += BK) {
    const bool more = k + BK < end;
    if (more) {
      x_loader.fetch(k + BK);
      w_loader.fetch(k + BK);
    }
    const threadgroup T* x_block = memory + stage * kStage;
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
    if (kTwo) {
      stage = 1 - stage;
    } else if (more) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (more) {
      threadgroup T* next = memory + stage * kStage;
      x_loader.put(next);
      w_loader.put(next + BM * kXStride, k + BK);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}

}  // namespace nibble
