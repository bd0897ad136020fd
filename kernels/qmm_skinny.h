// y = x @ w_hat^T for 6 to 32 rows of x: batched serving. w is read once.
//
// A threadgroup computes BM x BN of y. Its WK simdgroups share K, each with the
// same number of neighbouring steps, and each of them sums all BM x BN. At the
// end their sums are added in a fixed order, so a result never changes from run
// to run.
//
//   K ->  | step 0 | step 1 | step 2 | step 3 | step 4 | step 5 | ...
//         |           sg 0           |           sg 1           | ...
//
// Inputs do not pass through threadgroup memory, except for lines of w that two
// of these shares have in common, as in short rows:
//
//   3 bits, a step each   [ line 0     ][ line 1     ][ line 2     ]
//                         [ sg 0   ][ sg 1   ][ sg 2   ][ sg 3   ]
//
// The later one of the two fetches such a line first and hands it to the
// earlier one, which needs it last. So each line is requested once, and no
// simdgroup is idle.
//
// The order of the terms of a sum is free if x and w agree. So column kk of
// fragment j stands for the code
//
//   k = (kk / 2) * kCodes + (kk % 2) * kCodes / 2 + j     of a step.
//
// A lane holds a pair of columns (kk, kk + 1) of w, so its share of all
// fragments of w is kCodes neighbouring codes of one row. Its share of the
// fragments of x^T is kCodes / 2 neighbours of two rows. Four lanes hold a step
// of a row of w: 64 bytes at 4 and 8 bits, fewer or more at other widths. They
// fetch it by whole lines at every width (lines.h). All arithmetic from there
// is float: w_hat is never rounded, and bfloat costs nothing on a GPU without
// bfloat.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/lines.h"
#include "kernels/mma.h"
#include "kernels/packing.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Adds the sums of the WK simdgroups in pairs; simdgroup 0 gets the result.
// `scratch` has room for half of them.
template <int TN, int TM, int WK>
NIBBLE_INLINE void sum_over_simdgroups(thread Accumulator<TN, TM>& sum,
                                       threadgroup float2* scratch,
                                       int sgid,
                                       int lane) {
#pragma clang loop unroll(full)
  for (int half_way = WK / 2; half_way > 0; half_way /= 2) {
    const int slot = sgid % half_way;
    threadgroup float2* mine =
        scratch + slot * (TN * TM * NIBBLE_SIMD_WIDTH) + lane;
    if (sgid >= half_way && sgid < 2 * half_way) {
      sum.save(mine);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (sgid < half_way) {
      sum.add(mine);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

// sum += w_hat @ x^T over one step. `words` and `affine` are this lane's codes
// of w and their groups: one, or one for each half. Its codes of x begin at row
// `first_x` and column x_k; past K, where `x_inside` is false, they count as
// zero.
template <int TN, int TM, int kWords, int kGroups, typename T, typename Q>
NIBBLE_INLINE void multiply_step(thread Accumulator<TN, TM>& sum,
                                 const thread uint (&words)[TN][kWords],
                                 const thread
                                 typename Q::Parameters (&affine)[TN][kGroups],
                                 const thread Product<T, Q>& p,
                                 int first_x,
                                 int x_k,
                                 bool x_inside) {
  constexpr int kCodes = NIBBLE_SKINNY_CODES(Q::kBits);
  // The first half of a lane's codes, and the second.
  typename Q::Codes low[TN];
  typename Q::Codes high[TN];
#pragma clang loop unroll(full)
  for (int i = 0; i < kCodes / 2; i += 4) {
    vec<T, 4> x_held[TM][2];
#pragma clang loop unroll(full)
    for (int m = 0; m < TM; ++m) {
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int x_row = min(first_x + m * 8 + e, p.M - 1);
        x_held[m][e] = vec<T, 4>(T(0.0f));
        if (x_inside) {
          x_held[m][e] =
              *(const device vec<T, 4>*)(p.x +
                                         size_t(x_row) * size_t(p.weight.K) +
                                         x_k + i);
        }
      }
    }
    if (i % Q::kAtOnce == 0) {
#pragma clang loop unroll(full)
      for (int n = 0; n < TN; ++n) {
        low[n] = typename Q::Codes(words[n], i);
        high[n] = typename Q::Codes(words[n], kCodes / 2 + i);
      }
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      const int at = i % Q::kAtOnce + j;
      Fragment x_fragments[TM];
#pragma clang loop unroll(full)
      for (int m = 0; m < TM; ++m) {
        elements(x_fragments[m]) =
            float2(float(x_held[m][0][j]), float(x_held[m][1][j]));
      }
#pragma clang loop unroll(full)
      for (int n = 0; n < TN; ++n) {
        Fragment w_fragment;
        elements(w_fragment) =
            float2(Q::value(low[n], at, affine[n][0]),
                   Q::value(high[n], at, affine[n][kGroups - 1]));
#pragma clang loop unroll(full)
        for (int m = 0; m < TM; ++m) {
          simdgroup_multiply_accumulate(sum.fragments[n][m],
                                        w_fragment,
                                        x_fragments[m],
                                        sum.fragments[n][m]);
        }
      }
    }
  }
}

template <int BM,  // rows of a tile of y
          int BN,  // columns of a tile of y
          int WK>  // simdgroups, which share K
struct QmmSkinny : Transposed {
  static NIBBLE_INLINE constexpr int columns_of_tile() { return BN; }

  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return nibble_skinny_memory(Q::kBits, BM, BN, WK);
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4* memory) {
    constexpr int bits = Q::kBits;
    constexpr int kCodes = NIBBLE_SKINNY_CODES(bits);
    constexpr int kStep = 4 * kCodes;
    constexpr int kWords = words_of(kCodes, bits);
    constexpr int TM = BM / 8;
    constexpr int TN = BN / 8;
    constexpr int kGroups = groups_of<Q>(kCodes);
    static_assert(kGroups <= 2 && Q::kGroupSize % (kCodes / kGroups) == 0,
                  "a lane's codes share a group, or each half of them");
    const int M = p.M;
    const int N = p.N;
    const int K = p.weight.K;
    const int first_row = int(tgid.y) * BM;
    const int first_column = int(tgid.x) * BN;
    const int row = fragment_row(lane);
    const int column = fragment_column(lane);

    // y^T = w_hat @ x^T: w gives the left fragments, one row of w a lane.
    Accumulator<TN, TM> sum;
    sum.clear();
    const int share = nibble_skinny_share(bits, K, WK);
    const int first_step = sgid * share;
    const int end = min(K, first_step + share);
    const bool cut = nibble_skinny_cuts_lines(bits, K, WK);
    const WordRange all{0, words_of(K, bits)};
    uint held[TN][4] = {};
    int have = -1;
    int handed = -1;  // the line that the next simdgroup hands over, if it does
    threadgroup uint4* lines = memory + sgid * TN * NIBBLE_SIMD_WIDTH + lane;
    if (cut) {
      const int first_word = words_of(first_step, bits);
      if (first_step < end && first_word % line_words() != 0) {
        have = first_word / line_words();
#pragma clang loop unroll(full)
        for (int n = 0; n < TN; ++n) {
          const int w_row = min(first_column + n * 8 + row, N - 1);
          fetch_line(p.weight, all, w_row, have, column / 2, held[n]);
          hand_line(held[n], lines + (n - TN) * NIBBLE_SIMD_WIDTH);
        }
      }
      if (end < K && words_of(end, bits) % line_words() != 0) {
        handed = words_of(end, bits) / line_words();
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    const WordRange mine{0, handed < 0 ? all.end : handed * line_words()};
    for (int step = first_step; step < end; step += kStep) {
      // K is a multiple of kCodes, but not of a step: past it, terms are zero.
      const int w_k = step + column / 2 * kCodes;
      const int x_k = step + row / 2 * kCodes;
      const bool w_inside = w_k < K;
      const bool x_inside = x_k < K;

      const int window = words_of(step, bits);
      const int last_line = (window + 4 * kWords - 1) / line_words();
      uint words[TN][kWords] = {};
      typename Q::Parameters affine[TN][kGroups] = {};
#pragma clang loop unroll(full)
      for (int n = 0; n < TN; ++n) {
        // Past the last row of w or of x: the last row again, not stored.
        const int w_row = min(first_column + n * 8 + row, N - 1);
        uint before[4] = {};
        fetch_window<4 * kWords>(
            p.weight, mine, w_row, window, have, column / 2, before, held[n]);
        if (cut && last_line == handed && have != handed) {
          take_line(lines + n * NIBBLE_SIMD_WIDTH, held[n]);
        }
        share_window<kWords, 8>(
            before, held[n], window, int(lane), column / 2, words[n]);
#pragma clang loop unroll(full)
        for (int g = 0; g < kGroups; ++g) {
          if (w_inside) {
            affine[n][g] = p.weight.affine_at(w_row, w_k + g * Q::kGroupSize);
          }
        }
      }
      have = last_line;
      const int my_x_k = x_k + row % 2 * (kCodes / 2);
      multiply_step(
          sum, words, affine, p, first_row + column, my_x_k, x_inside);
    }

    if (cut) {
      // The sums overwrite the lines.
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    sum_over_simdgroups<TN, TM, WK>(
        sum, (threadgroup float2*)memory, sgid, int(lane));
    if (sgid != 0) {
      return;
    }
#pragma clang loop unroll(full)
    for (int n = 0; n < TN; ++n) {
      const int y_column = first_column + n * 8 + row;
#pragma clang loop unroll(full)
      for (int m = 0; m < TM; ++m) {
        const float2 pair = elements(sum.fragments[n][m]);
#pragma clang loop unroll(full)
        for (int e = 0; e < 2; ++e) {
          const int y_row = first_row + m * 8 + column + e;
          const size_t at = size_t(y_row) * size_t(N) + size_t(y_column);
          if (y_row < M && y_column < N) {
            p.y[at] = p.epilogue.finish(pair[e], y_column, at);
          }
        }
      }
    }
  }
};

}  // namespace nibble
