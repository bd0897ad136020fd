// y = x @ w_hat by tiles: w not transposed, as in a backward pass.
//
// x [M, N], w_hat [N, K], y [M, K]. A threadgroup computes BM x BN of y. The
// sum runs over blocks of BK rows of w, and w_hat is rounded to T as in qmm:
//
//                 BK                BN                 BN
//              +------+        +----------+       +---------+
//           BM |  x   |     BK |    w     |    BM | sg | sg |
//              +------+        +----------+       | sg | sg |
//                                                 +---------+
//
// N may be any number: past it, x is zero.
#pragma once

#include <metal_stdlib>

#include "kernels/blocks.h"
#include "kernels/dequant.h"
#include "kernels/lines.h"
#include "kernels/loader.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Loads rows [first_row, first_row + rows) of x [M, N], BK columns at a time,
// one element a load: rows of any length may begin at any element.
template <typename T, int rows, int BK, int threads>
struct ElementLoader {
  static_assert(threads % BK == 0, "a thread stays in one column");

  int column;
  int row;  // of the first load, in the tile
  int N;
  const device T* sources[rows * BK / threads];
  T held[rows * BK / threads];

  NIBBLE_INLINE ElementLoader(const device T* x,
                              const device uint* indices,
                              int first_row,
                              int M,
                              int N_,
                              int thread_index)
      : column(thread_index % BK), row(thread_index / BK), N(N_) {
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int at = min(first_row + row + i * (threads / BK), M - 1);
      sources[i] = row_of(x, indices, at, N) + column;
    }
  }

  NIBBLE_INLINE void fetch(int n) thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      held[i] = T(0.0f);
      if (n + column < N) {
        held[i] = sources[i][n];
      }
    }
  }

  NIBBLE_INLINE void put(threadgroup T* tile) const thread {
#pragma clang loop unroll(full)
    for (int i = 0; i < rows * BK / threads; ++i) {
      const int target = row + i * (threads / BK);
      tile[target * tile_stride<T, BK>() + column] = held[i];
    }
  }
};

// `count` neighbouring lanes, of which the first `holders` have a value. They
// are halved until they are a quad: quad_shuffle() and simd_shuffle_xor() are
// native instructions, simd_shuffle() is not (lines.h).
template <int count, int holders>
struct Lanes {
  static constant constexpr int kHalf = count / 2;
  static constant constexpr int kLow = holders < kHalf ? holders : kHalf;

  // Returns the value of lane `holder` of them.
  static NIBBLE_INLINE uint value_of(uint value, int holder, int lane) {
    const uint other = simd_shuffle_xor(value, ushort(kHalf));
    const bool upper = (lane & kHalf) != 0;
    const uint low =
        Lanes<kHalf, kLow>::value_of(upper ? other : value, holder, lane);
    const uint high = Lanes<kHalf, holders - kLow>::value_of(
        upper ? value : other, holder, lane);
    return (holder & kHalf) != 0 ? high : low;
  }
};

template <int holders>
struct Lanes<4, holders> {
  static NIBBLE_INLINE uint value_of(uint value, int holder, int) {
    return quad_shuffle(value, ushort(holder & 3));
  }
};

// Nobody asks for a value of lanes that have none.
template <>
struct Lanes<4, 0> {
  static NIBBLE_INLINE uint value_of(uint, int, int) { return 0; }
};

template <int count>
struct Lanes<count, 0> {
  static NIBBLE_INLINE uint value_of(uint, int, int) { return 0; }
};

// Loads columns [first_column, first_column + BN) of w [N, K], BK rows at a
// time. Neighbouring threads share a row. The first of them fetch it, four
// words each. So a line is requested once if BN codes are whole lines, as in
// tiles.h. Then each thread gets its share:
//
//   thread of the row    0           1           2           3      ...  15
//   fetched, 6 bits     [w0 .. w3]  [w4 .. w7]  [w8 .. w11] [w12 .. w15]  -
//   put                 [w0 .. w2]  [w3 .. w5]  [w6 .. w8]  [w9 .. w11]  ...
//
// A share of four words is the one that the thread itself has fetched.
template <typename T,   // in the tile
          typename Q,   // format of w
          int BK,       // rows of a block
          int BN,       // columns of the tile
          int threads>  // of the threadgroup
struct RowLoader {
  static_assert(threads % BK == 0 && threads / BK <= NIBBLE_SIMD_WIDTH,
                "one simdgroup has all threads of a row");
  static_assert(BN * Q::kBits % 128 == 0 && BN * Q::kBits / 128 <= threads / BK,
                "a row is fetched at once, four words a thread");
  static_assert(Q::kGroupSize % (BK * BN / threads) == 0 ||
                    BK * BN / threads % Q::kGroupSize == 0,
                "a thread's codes share a group, or are whole groups");
  static_assert(BK * BN / threads % 8 == 0 &&
                    share_words(BK * BN / threads, Q::kBits) <= 4,
                "a share lies in four words");

  static constant constexpr int kGroups =
      groups_of<Q>(BK * BN / threads);  // of a thread's codes

  QuantizedMatrix<Q> weight;
  WordRange range;  // the tile's columns that exist
  int last_row;
  int row;
  int lane;
  int place;  // among the threads of the row
  int column;
  typename Q::Parameters affine[kGroups];
  uint held[4];

  NIBBLE_INLINE RowLoader(const thread QuantizedMatrix<Q>& weight_,
                          int first_column,
                          int N,
                          int thread_index)
      : weight(weight_), last_row(N - 1) {
    constexpr int threads_a_row = threads / BK;
    row = thread_index / threads_a_row;
    lane = thread_index % NIBBLE_SIMD_WIDTH;
    place = thread_index % threads_a_row;
    column = first_column + place * (BN / threads_a_row);
    range = {words_of(first_column, Q::kBits),
             words_of(min(first_column + BN, weight.K), Q::kBits)};
    // Past the end of K, threads still take part in the exchange.
    for (int i = 0; i < 4; ++i) {
      held[i] = 0;
    }
    for (int g = 0; g < kGroups; ++g) {
      affine[g] = typename Q::Parameters(0.0f);
    }
  }

  NIBBLE_INLINE void fetch(int n) thread {
    const int source = min(n + row, last_row);
    fetch_four(weight, range, source, range.begin + place * 4, held);
#pragma clang loop unroll(full)
    for (int g = 0; g < kGroups; ++g) {
      if (column + g * Q::kGroupSize < weight.K) {
        affine[g] = weight.affine_at(source, column + g * Q::kGroupSize);
      }
    }
  }

  NIBBLE_INLINE void put(threadgroup T* tile, int) const thread {
    constexpr int count = BK * BN / threads;
    threadgroup T* to = tile + row * tile_stride<T, BN>() + place * count;
    if (count * Q::kBits == 128) {
      put_dequantized<T, Q, count>(held, affine, to);
      return;
    }
    const int first = place * count * Q::kBits / 32;
    uint passed[4];
    pass_four(first, passed);
    uint mine[share_words(count, Q::kBits)];
    take_share<count, Q::kBits>(
        passed, first, place * count * Q::kBits % 32, mine);
    put_dequantized<T, Q, count>(mine, affine, to);
  }

  // Passes this thread words first .. first + 3 of the tile's part of the row;
  // word i arrives as passed[i % 4].
  NIBBLE_INLINE void pass_four(int first, thread uint* passed) const thread {
    constexpr int threads_a_row = threads / BK;
    constexpr int holders = BN * Q::kBits / 128;
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      const int wanted = first + ((i - first) & 3);
      // Past the end of the row the word is not used: any lane may give it.
      passed[i] = Lanes<threads_a_row, holders>::value_of(
          held[i], wanted / 4 % threads_a_row, lane);
    }
  }
};

template <int BM,  // rows of a tile of y
          int BN,  // columns of a tile of y
          int BK,  // rows of a block of w
          int WM,  // simdgroups down a tile
          int WN>  // simdgroups across a tile
struct QmmN : NotTransposed {
  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return Blocks<true, T, BM, BN, BK>::kBytes;
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
    ElementLoader<T, BM, BK, kThreads> x_loader(
        p.x, indices, first_row, p.M, p.N, thread_index);
    RowLoader<T, Q, BK, BN, kThreads> w_loader(
        p.weight, first_column, p.N, thread_index);
    BlockTile<BM, BN, WM, WN> tile(sgid);
    multiply_blocks<true, T, BM, BN, BK, WM, WN>(
        tile, x_loader, w_loader, 0, p.N, (threadgroup T*)memory, lane);
    tile.store(p.epilogue, p.y, first_row, first_column, p.M, p.weight.K, lane);
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
