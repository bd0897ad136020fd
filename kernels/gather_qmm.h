// Products of one row each, sorted by their weight matrix, in tiles: for the
// experts of a mixture that have many rows.
//
// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T or x[lhs[b]] @ w_hat[rhs[b]], w_hat
// [E, N, K], lhs and rhs [B].
#pragma once

#include <metal_stdlib>

#include "kernels/product.h"
#include "kernels/qmm.h"
#include "kernels/qmm_n.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Returns the first index in [low, high) of the sorted rhs whose expert is not
// below `expert`, or `high`.
NIBBLE_INLINE int first_of(const device uint* rhs,
                           int low,
                           int high,
                           uint expert) {
  while (low < high) {
    const int middle = low + (high - low) / 2;
    if (rhs[middle] < expert) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Products [begin, end) of one expert.
struct ExpertRows {
  int begin;
  int end;
};

// The rows of threadgroup `tile`, at most BM of one expert; none if the tile is
// not needed. The run of each expert is cut into tiles from its beginning:
//
//   b       0 1 2 3 4 5 6 7 8 9 ...        BM = 4, E = 3
//   rhs     0 0 0 0 0 0 2 2 2 2 ...        no product of expert 1
//   window  |       |       |
//   tiles   a a a a b b c c c c
//
// Each expert has a threadgroup for its first tile: a, none, c. Any other tile
// begins in a window of BM products whose first has a neighbour before it of
// the same expert. A window has one such tile at most: b is that of window 1.
// So there are E threadgroups, and one for each window but the first. Those of
// an expert are near those of its windows, because they read the same weights.
template <int BM>
NIBBLE_INLINE ExpertRows
rows_of_tile(const device uint* rhs, int B, int experts, int tile) {
  const ulong tiles = ulong(experts + (B + BM - 1) / BM - 1);
  const int before = int(ulong(tile) * ulong(experts) / tiles);
  const int through = int(ulong(tile + 1) * ulong(experts) / tiles);
  uint expert = uint(before);
  int begin;
  if (through > before) {
    begin = first_of(rhs, 0, B, expert);
  } else {
    const int window = (tile - before + 1) * BM;
    expert = rhs[window - 1];
    const int first = first_of(rhs, 0, window, expert);
    begin = first + (window - first + BM - 1) / BM * BM;
  }
  if (begin >= B || rhs[begin] != expert) {
    return {0, 0};
  }
  return {begin, first_of(rhs, begin, min(begin + BM, B), expert + 1)};
}

template <typename Family, typename T, typename Q>
[[kernel]] void gathered_sorted(const device uint* w [[buffer(0)]],
                                const device typename Q::Scale* scales
                                [[buffer(1)]],
                                const device typename Q::Scale* biases
                                [[buffer(2)]],
                                const device T* x [[buffer(3)]],
                                const device uint* lhs [[buffer(4)]],
                                const device uint* rhs [[buffer(5)]],
                                device T* y [[buffer(6)]],
                                constant GatherParams& params [[buffer(7)]],
                                uint3 tgid [[threadgroup_position_in_grid]],
                                uint sgid [[simdgroup_index_in_threadgroup]],
                                uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kMemory = Family::template memory_bytes<T, Q>() / 16;
  threadgroup uint4 memory[kMemory];
  const ExpertRows rows = rows_of_tile<Family::rows_of_tile()>(
      rhs, params.B, params.experts, int(tgid.y));
  if (rows.begin == rows.end) {
    return;
  }
  const Product<T, Q> p{
      {{w, scales, biases}, params.N, params.K, int(rhs[rows.begin])},
      x,
      {},
      y,
      rows.end,
      params.N};
  Family::rows(p, lhs, rows.begin, tgid, int(sgid), lane, memory);
}

}  // namespace nibble
