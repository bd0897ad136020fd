// Tiles of products of one row each, sorted by their weight matrix. The text is
// that of Metal and of CUDA; Indices is a pointer to unsigned numbers.
#pragma once

#include "kernels/shared.h"

namespace nibble {

// Returns the first index in [low, high) of the sorted rhs whose expert is not
// below `expert`, or `high`.
template <typename Indices>
NIBBLE_INLINE int first_of(Indices rhs, int low, int high, uint expert) {
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
template <int BM, typename Indices>
NIBBLE_INLINE ExpertRows
rows_of_tile(Indices rhs, int B, int experts, int tile) {
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
  const int end = begin + BM < B ? begin + BM : B;
  return {begin, first_of(rhs, begin, end, expert + 1)};
}

}  // namespace nibble
