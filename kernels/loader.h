// Blocks of x and of w on their way from device to threadgroup memory.
//
// A loader works in two steps, so that the device's latency hides behind the
// arithmetic of the block before: fetch() reads the next block into registers,
// put() writes it to threadgroup memory, w dequantized.
//
// Rows past the last are the last row again: reading it is safe, and what it
// leads to is never stored.
#pragma once

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

// Rows [first_row, first_row + rows) of x [M, K], BK columns at a time.
template <typename T, int rows, int BK, int threads>
struct ActivationLoader {
  static_assert(rows * BK % (threads * 4) == 0, "four elements a load");
  static_assert(BK % (rows * BK / threads) == 0, "a thread stays in one row");

  const device T* source;
  int offset;  // of this thread's elements in the tile
  vec<T, 4> held[rows * BK / threads / 4];

  ActivationLoader(
      const device T* x, int first_row, int M, int K, int thread_index) {
    constexpr int count = rows * BK / threads;
    const int row = thread_index / (BK / count);
    const int column = thread_index % (BK / count) * count;
    source = x + size_t(min(first_row + row, M - 1)) * size_t(K) + column;
    offset = row * tile_stride<T, BK>() + column;
  }

  void fetch(int k) thread {
    constexpr int count = rows * BK / threads;
#pragma clang loop unroll(full)
    for (int i = 0; i < count / 4; ++i) {
      held[i] = *(const device vec<T, 4>*)(source + k + i * 4);
    }
  }

  void put(threadgroup T* tile) const thread {
    constexpr int count = rows * BK / threads;
#pragma clang loop unroll(full)
    for (int i = 0; i < count / 4; ++i) {
      *(threadgroup vec<T, 4>*)(tile + offset + i * 4) = held[i];
    }
  }
};

// Codes that one thread dequantizes of a tile of `codes`: an equal share, but
// never less than a run of whole words.
constexpr int codes_a_thread(int codes, int threads, int bits) {
  return codes / threads < run_codes(bits) ? run_codes(bits) : codes / threads;
}

// Rows [first_row, first_row + rows) of w [N, K], BK columns at a time. Values
// are computed in float and rounded to T as they enter the tile.
template <typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric,
          int rows,
          int BK,
          int threads>
struct WeightLoader {
  static_assert(group_size % BK == 0, "a block lies inside one group");
  static_assert(BK % codes_a_thread(rows * BK, threads, bits) == 0,
                "a thread stays in one row");

  QuantizedMatrix<S, bits, group_size, symmetric> weight;
  bool active;  // at odd widths there are fewer runs than threads
  int row;
  int column;
  int offset;
  float2 affine;
  uint held[words_of(codes_a_thread(rows * BK, threads, bits), bits)];

  WeightLoader(
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
    if (!active) {
      return;
    }
    load_words<words_of(count, bits)>(weight.words_at(row, k + column), held);
    if (k % group_size == 0) {
      affine = weight.affine_at(row, k);
    }
  }

  void put(threadgroup T* tile) const thread {
    constexpr int count = codes_a_thread(rows * BK, threads, bits);
    if (!active) {
      return;
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < count; i += 4) {
      vec<T, 4> values;
#pragma clang loop unroll(full)
      for (int j = 0; j < 4; ++j) {
        values[j] = T(dequantize_code<bits>(held, i + j, affine));
      }
      *(threadgroup vec<T, 4>*)(tile + offset + i) = values;
    }
  }
};

}  // namespace nibble
