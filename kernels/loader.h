// Moves blocks of x and of w from device to threadgroup memory.
//
// A loader works in two steps, so that the arithmetic of one block hides the
// latency of the next: fetch() reads into registers, put() writes the block to
// threadgroup memory, w dequantized.
//
// Rows past the last are the last row again: reading it is safe, and their
// results are never stored.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/lines.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Elements from one row of a threadgroup tile to the next: 16 bytes more than
// the row, so that the eight rows of a fragment start in different banks.
template <typename T, int BK>
NIBBLE_INLINE constexpr int tile_stride() {
  return BK + 16 / int(sizeof(T));
}

// Row `row` of x [.., columns], or row indices[row] unless `indices` is null.
template <typename T>
NIBBLE_INLINE const device T* row_of(const device T* x,
                                     const device uint* indices,
                                     int row,
                                     int columns) {
  const size_t source = indices ? size_t(indices[row]) : size_t(row);
  return x + source * size_t(columns);
}

// Elements of T in 16 bytes, which a thread moves at once.
template <typename T>
NIBBLE_INLINE constexpr int elements_at_once() {
  return 16 / int(sizeof(T));
}

// Passes in which `threads` threads move a block of x [rows, BK].
template <typename T, int rows, int BK, int threads>
NIBBLE_INLINE constexpr int activation_passes() {
  return rows * BK / elements_at_once<T>() / threads;
}

// Loads rows [first_row, first_row + rows) of x [M, K], BK columns at a time;
// neighbouring threads read neighbouring bytes.
template <typename T, int rows, int BK, int threads>
struct ActivationLoader {
  static_assert(rows * BK % (elements_at_once<T>() * threads) == 0,
                "every pass needs all threads");

  int row;  // of the first pass, in the tile
  int column;
  const device T* sources[activation_passes<T, rows, BK, threads>()];
  uint4 held[activation_passes<T, rows, BK, threads>()];

  NIBBLE_INLINE ActivationLoader(const device T* x,
                                 const device uint* indices,
                                 int first_row,
                                 int M,
                                 int K,
                                 int thread_index) {
    constexpr int passes = activation_passes<T, rows, BK, threads>();
    constexpr int threads_a_row = BK / elements_at_once<T>();
    row = thread_index / threads_a_row;
    column = thread_index % threads_a_row * elements_at_once<T>();
    for (int p = 0; p < passes; ++p) {
      const int at = min(first_row + row + p * (rows / passes), M - 1);
      sources[p] = row_of(x, indices, at, K) + column;
    }
  }

  NIBBLE_INLINE void fetch(int k) thread {
    constexpr int passes = activation_passes<T, rows, BK, threads>();
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      held[p] = *(const device uint4*)(sources[p] + k);
    }
  }

  NIBBLE_INLINE void put(threadgroup T* tile) const thread {
    constexpr int passes = activation_passes<T, rows, BK, threads>();
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      const int target = row + p * (rows / passes);
      *(threadgroup uint4*)(tile + target * tile_stride<T, BK>() + column) =
          held[p];
    }
  }
};

// True if numbers up to `largest` may become half: none of them overflows, and
// one that rounds to a multiple of 2^-24 is off by at most 2^-12 of the
// largest. That is a sixteenth of bfloat's own roundoff. False for a NaN.
NIBBLE_INLINE bool fits_half(float largest) {
  constexpr float kLeast = 1.0f / 8192.0f;
  constexpr float kMost = 65504.0f;
  return largest == 0.0f || (largest >= kLeast && largest <= kMost);
}

// Dequantizes `count` codes of `words`, which begin a group or lie inside one,
// into a row of a tile. affine[g] belongs to their group g. Values are computed
// in float and rounded to T in the tile.
template <typename T, typename Q, int count>
NIBBLE_INLINE void put_dequantized(const thread uint* words,
                                   const thread typename Q::Parameters* affine,
                                   threadgroup T* to) {
#pragma clang loop unroll(full)
  for (int i = 0; i < count; i += Q::kAtOnce) {
    const typename Q::Codes codes(words, i);
#pragma clang loop unroll(full)
    for (int j = 0; j < Q::kAtOnce; j += 4) {
      *(threadgroup vec<T, 4>*)(to + i + j) =
          four_values<T, Q>(codes, j, affine[i / Q::kGroupSize]);
    }
  }
}

// Words that the `count` codes of a share fill if its first code begins a word.
NIBBLE_INLINE constexpr int share_words(int count, int bits) {
  return (count * bits + 31) / 32;
}

// True if word `i` of some lane's share lies in two stored words. Share s
// begins at bit s * count * bits, a multiple of 8, so four shares cover all
// alignments.
NIBBLE_INLINE constexpr bool of_two_words(int count, int bits, int i) {
  const int share = count * bits;
  const int wanted = share - i * 32 < 32 ? share - i * 32 : 32;
  return share % 32 + wanted > 32 || 2 * share % 32 + wanted > 32 ||
         3 * share % 32 + wanted > 32;
}

// Shifts the share of `count` codes that begins at bit `shift` of word `first`
// to the beginning of `mine`; word i is passed[i % 4].
template <int count, int bits>
NIBBLE_INLINE void take_share(const thread uint* passed,
                              int first,
                              int shift,
                              thread uint* mine) {
#pragma clang loop unroll(full)
  for (int i = 0; i < share_words(count, bits); ++i) {
    mine[i] = passed_word(passed, first + i);
    if (count * bits % 32 != 0) {
      mine[i] >>= shift;
    }
    if (of_two_words(count, bits, i)) {
      // In two steps, because a shift by 32 is undefined.
      const uint next = passed_word(passed, first + i + 1);
      mine[i] |= next << 1 << (31 - shift);
    }
  }
}

// Loads rows [first_row, first_row + rows) of w [N, K], a block of BK columns
// at a time. Four lanes read a row by whole lines (lines.h), and each puts an
// equal share of the block:
//
//   lane of four        0            1            2            3
//   of a line, 4 bits  [w0 w1 w2 w3][w4 w5 w6 w7][w8 ... w11][w12 ... w15]
//   put, block 0        w0           w1           w2           w3
//   put, block 1        w4           w5           w6           w7    ...
//
// At 2, 3, 5 and 6 bits a share may begin inside a word; it is then shifted to
// begin one.
//
// Each of the four also fetches the scale and bias of one of four groups: eight
// bytes of a row's scales at once instead of two bytes four times. A block lies
// in one group, or has two groups of 16, and a share always lies in one.
template <typename T,   // in the tile
          typename Q,   // format of w
          int rows,     // of the tile
          int BK,       // columns of a block
          int threads>  // of the threadgroup
struct WeightLoader {
  static_assert(Q::kGroupSize % BK == 0 || 2 * Q::kGroupSize == BK,
                "a share of a block lies inside one group");
  static_assert(rows % (threads / 4) == 0, "four lanes to a row");
  static_assert(BK % 32 == 0 && words_of(BK, Q::kBits) <= line_words(),
                "a block is a window of lines.h");

  QuantizedMatrix<Q> weight;
  int first_row;
  int last_row;
  int row;  // of the first pass, in the tile
  int lane;
  typename Q::Parameters held_affine[rows / (threads / 4)];
  typename Q::Parameters affine[rows / (threads / 4)];
  uint before[rows / (threads / 4)][4];
  uint held[rows / (threads / 4)][4];

  NIBBLE_INLINE WeightLoader(const thread QuantizedMatrix<Q>& weight_,
                             int first_row_,
                             int N,
                             int thread_index)
      : weight(weight_), first_row(first_row_), last_row(N - 1) {
    row = thread_index / 4;
    lane = thread_index % NIBBLE_SIMD_WIDTH;
    // Past the end of K, lanes still take part in the exchange.
    for (int p = 0; p < rows / (threads / 4); ++p) {
      for (int i = 0; i < 4; ++i) {
        before[p][i] = 0;
        held[p][i] = 0;
      }
      held_affine[p] = typename Q::Parameters(0.0f);
    }
  }

  // Reads the lines and groups that the block at column k needs and no block
  // before it has read. Blocks come in order; the first begins a line and four
  // groups.
  NIBBLE_INLINE void fetch(int k) thread {
    constexpr int passes = rows / (threads / 4);
    const int window = words_of(k, Q::kBits);
    const int have = k == 0 ? -1 : (window - 1) / line_words();
    const WordRange row_words{0, words_of(weight.K, Q::kBits)};
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      const int source = min(first_row + row + p * (threads / 4), last_row);
      fetch_window<words_of(BK, Q::kBits)>(weight,
                                           row_words,
                                           source,
                                           window,
                                           have,
                                           lane % 4,
                                           before[p],
                                           held[p]);
      const int group_k = k + lane % 4 * Q::kGroupSize;
      if (k % (4 * Q::kGroupSize) == 0 && group_k < weight.K) {
        held_affine[p] = weight.affine_at(source, group_k);
      }
      if (k % Q::kGroupSize == 0) {
        const ushort holder = ushort(k / Q::kGroupSize % 4);
        if (Q::kGroupSize < BK) {
          const ushort half_way = ushort(lane % 4 / 2);
          affine[p] = quad_shuffle(held_affine[p], ushort(holder + half_way));
        } else {
          affine[p] = quad_broadcast(held_affine[p], holder);
        }
      }
    }
  }

  // True if the current groups may become half.
  NIBBLE_INLINE bool fit_half() const thread {
    bool fit = true;
#pragma clang loop unroll(full)
    for (int p = 0; p < rows / (threads / 4); ++p) {
      fit = fit && fits_half(Q::reach(affine[p]));
    }
    return fit;
  }

  // Writes the block that begins at column k.
  NIBBLE_INLINE void put(threadgroup T* tile, int k) thread {
    constexpr int passes = rows / (threads / 4);
    constexpr int count = BK / 4;
    const int quad_lane = lane % 4;
    const int window = words_of(k, Q::kBits);
    const int first = window + quad_lane * count * Q::kBits / 32;
    const int shift = quad_lane * count * Q::kBits % 32;
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      uint passed[4];
      pass_words<words_of(BK, Q::kBits), 2>(
          before[p], held[p], window, first, lane, quad_lane, passed);
      uint mine[share_words(count, Q::kBits)];
      take_share<count, Q::kBits>(passed, first, shift, mine);
      const int target = row + p * (threads / 4);
      put_dequantized<T, Q, count>(
          mine,
          affine + p,
          tile + target * tile_stride<T, BK>() + quad_lane * count);
    }
  }
};

}  // namespace nibble
