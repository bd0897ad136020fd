// Blocks of x and of w on their way from device to threadgroup memory.
//
// A loader works in two steps, so that the device's latency hides behind the
// arithmetic of the block before: fetch() reads into registers, put() writes
// the next block to threadgroup memory, w dequantized.
//
// Rows past the last are the last row again: reading it is safe, and what it
// leads to is never stored.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Elements from one row of a threadgroup tile to the next: 16 bytes more than
// the row, so that the eight rows of a fragment start in different banks.
template <typename T, int BK>
constexpr int tile_stride() {
  return BK + 16 / int(sizeof(T));
}

// Row `row` of x [.., columns], or row indices[row] if there are indices.
template <typename T>
inline const device T* row_of(const device T* x,
                              const device uint* indices,
                              int row,
                              int columns) {
  const size_t source = indices ? size_t(indices[row]) : size_t(row);
  return x + source * size_t(columns);
}

// Elements of T in 16 bytes: what a thread moves at once.
template <typename T>
constexpr int elements_at_once() {
  return 16 / int(sizeof(T));
}

// Times that `threads` threads must go to move a block of x [rows, BK].
template <typename T, int rows, int BK, int threads>
constexpr int activation_passes() {
  return rows * BK / elements_at_once<T>() / threads;
}

// Rows [first_row, first_row + rows) of x [M, K], BK columns at a time;
// neighbouring threads read neighbouring bytes.
template <typename T, int rows, int BK, int threads>
struct ActivationLoader {
  static_assert(rows * BK % (elements_at_once<T>() * threads) == 0,
                "all threads are needed in every pass");

  int row;  // of the first pass, in the tile
  int column;
  const device T* sources[activation_passes<T, rows, BK, threads>()];
  uint4 held[activation_passes<T, rows, BK, threads>()];

  ActivationLoader(const device T* x,
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

  void fetch(int k) thread {
    constexpr int passes = activation_passes<T, rows, BK, threads>();
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      held[p] = *(const device uint4*)(sources[p] + k);
    }
  }

  void put(threadgroup T* tile) const thread {
    constexpr int passes = activation_passes<T, rows, BK, threads>();
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      const int target = row + p * (rows / passes);
      *(threadgroup uint4*)(tile + target * tile_stride<T, BK>() + column) =
          held[p];
    }
  }
};

// Whether numbers may become half, the largest of which is `largest`: none of
// them overflows, and what rounds to a multiple of 2^-24 is off by no more than
// 2^-12 of the largest, a sixteenth of bfloat's own roundoff. Not with a NaN.
inline bool fits_half(float largest) {
  constexpr float kLeast = 1.0f / 8192.0f;
  constexpr float kMost = 65504.0f;
  return largest == 0.0f || (largest >= kLeast && largest <= kMost);
}

// The largest |w_hat| that a group can hold: at the first or at the last code.
template <int bits>
inline float reach(float2 affine) {
  constexpr float kLast = float((1 << bits) - 1);
  return max(abs(affine.y), abs(fma(affine.x, kLast, affine.y)));
}

// Dequantizes `count` codes of `words` into a row of a tile. Values are
// computed in float and rounded to T as they enter the tile.
template <typename T, int bits, int count>
inline void put_dequantized(const thread uint* words,
                            float2 affine,
                            threadgroup T* to) {
#pragma clang loop unroll(full)
  for (int i = 0; i < count; i += 4) {
    vec<T, 4> values;
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      values[j] = T(dequantize_code<bits>(words, i + j, affine));
    }
    *(threadgroup vec<T, 4>*)(to + i) = values;
  }
}

// Rows [first_row, first_row + rows) of w [N, K], a block of BK columns at a
// time, for 4 and 8 bits.
//
// A block of 32 columns is 16 or 32 bytes of a row, a fraction of a cache
// line. So four lanes fetch 64 bytes of a row at once, the codes of several
// blocks (a span), and put() passes them round:
//
//   lane of four       0            1            2            3
//   fetched, 4 bits  [w0 w1 w2 w3][w4 w5 w6 w7][w8 ... w11][w12 ... w15]
//   put, block 0      w0           w1           w2           w3
//   put, block 1      w4           w5           w6           w7    ...
//
// Likewise each of them fetches the scale and bias of one of four groups: eight
// bytes of a row's scales at once rather than two, four times.
template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int rows,
          int BK,
          int threads>
struct SpanLoader {
  static_assert(group_size % BK == 0, "a block lies inside one group");
  static_assert(rows % (threads / 4) == 0, "four lanes to a row");
  static_assert(bits == 4 || bits == 8, "a share of a block is whole words");

  QuantizedMatrix<S, bits, group_size, symmetric> weight;
  int first_row;
  int last_row;
  int row;  // of the first pass, in the tile
  int lane;
  float2 held_affine[rows / (threads / 4)];
  float2 affine[rows / (threads / 4)];
  uint held[rows / (threads / 4)][4];

  SpanLoader(
      const thread QuantizedMatrix<S, bits, group_size, symmetric>& weight_,
      int first_row_,
      int N,
      int thread_index)
      : weight(weight_), first_row(first_row_), last_row(N - 1) {
    row = thread_index / 4;
    lane = thread_index % NIBBLE_SIMD_WIDTH;
    // Past the end of K, lanes take part in the passing round empty-handed.
    for (int p = 0; p < rows / (threads / 4); ++p) {
      for (int i = 0; i < 4; ++i) {
        held[p][i] = 0;
      }
      held_affine[p] = float2(0.0f);
    }
  }

  // Reads if a span or a group begins at column k.
  void fetch(int k) thread {
    constexpr int passes = rows / (threads / 4);
    constexpr int share = 4 * 32 / bits;  // codes of a span that a lane reads
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      const int source = min(first_row + row + p * (threads / 4), last_row);
      // K is a multiple of a share, but not of a span.
      const int share_k = k + lane % 4 * share;
      if (k % (4 * share) == 0 && share_k < weight.K) {
        load_words<4>(weight.words_at(source, share_k), held[p]);
      }
      const int group_k = k + lane % 4 * group_size;
      if (k % (4 * group_size) == 0 && group_k < weight.K) {
        held_affine[p] = weight.affine_at(source, group_k);
      }
      if (k % group_size == 0) {
        affine[p] = simd_shuffle(held_affine[p],
                                 ushort(lane - lane % 4 + k / group_size % 4));
      }
    }
  }

  // Whether the groups at hand may become half.
  bool fit_half() const thread {
    bool fit = true;
#pragma clang loop unroll(full)
    for (int p = 0; p < rows / (threads / 4); ++p) {
      fit = fit && fits_half(reach<bits>(affine[p]));
    }
    return fit;
  }

  // Writes the block that begins at column k.
  void put(threadgroup T* tile, int k) thread {
    constexpr int passes = rows / (threads / 4);
    constexpr int count = BK / 4;
    constexpr int words = words_of(count, bits);
    constexpr int span = 4 * 4 * 32 / bits;
    const int quad_lane = lane % 4;
#pragma clang loop unroll(full)
    for (int p = 0; p < passes; ++p) {
      uint mine[words];
#pragma clang loop unroll(full)
      for (int i = 0; i < words; ++i) {
        const int wanted = words_of(k % span, bits) + quad_lane * words + i;
        const ushort from = ushort(lane - quad_lane + wanted / 4);
#pragma clang loop unroll(full)
        for (int j = i; j < 4; j += words) {
          const uint word = simd_shuffle(held[p][j], from);
          mine[i] = j == i || wanted % 4 == j ? word : mine[i];
        }
      }
      const int target = row + p * (threads / 4);
      put_dequantized<T, bits, count>(
          mine,
          affine[p],
          tile + target * tile_stride<T, BK>() + quad_lane * count);
    }
  }
};

// Codes that one thread dequantizes of a block of `codes`: an equal share, but
// never less than a run of whole words.
constexpr int codes_a_thread(int codes, int threads, int bits) {
  return codes / threads < run_codes(bits) ? run_codes(bits) : codes / threads;
}

// The same for the other widths, where a share of a block may be no whole
// words: each thread reads what it dequantizes, a part of a cache line.
template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int rows,
          int BK,
          int threads>
struct RunLoader {
  static_assert(group_size % BK == 0, "a block lies inside one group");
  static_assert(BK % codes_a_thread(rows * BK, threads, bits) == 0,
                "a thread stays in one row");

  QuantizedMatrix<S, bits, group_size, symmetric> weight;
  bool active;  // there may be fewer runs than threads
  int row;
  int column;
  int offset;
  float2 affine;
  uint held[words_of(codes_a_thread(rows * BK, threads, bits), bits)];

  RunLoader(
      const thread QuantizedMatrix<S, bits, group_size, symmetric>& weight_,
      int first_row,
      int N,
      int thread_index)
      : weight(weight_) {
    constexpr int count = codes_a_thread(rows * BK, threads, bits);
    active = thread_index * count < rows * BK;
    const int tile_row = thread_index / (BK / count);
    column = thread_index % (BK / count) * count;
    row = min(first_row + tile_row, N - 1);
    offset = tile_row * tile_stride<T, BK>() + column;
  }

  void fetch(int k) thread {
    constexpr int count = codes_a_thread(rows * BK, threads, bits);
    if (active) {
      load_words<words_of(count, bits)>(weight.words_at(row, k + column), held);
      if (k % group_size == 0) {
        affine = weight.affine_at(row, k);
      }
    }
  }

  bool fit_half() const thread {
    return !active || fits_half(reach<bits>(affine));
  }

  void put(threadgroup T* tile, int) const thread {
    constexpr int count = codes_a_thread(rows * BK, threads, bits);
    if (active) {
      put_dequantized<T, bits, count>(held, affine, tile + offset);
    }
  }
};

template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int rows,
          int BK,
          int threads>
using WeightLoader = conditional_t<
    bits == 4 || bits == 8,
    SpanLoader<T, S, bits, group_size, symmetric, rows, BK, threads>,
    RunLoader<T, S, bits, group_size, symmetric, rows, BK, threads>>;

}  // namespace nibble
