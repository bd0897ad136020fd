// y = x @ w_hat^T for 2 to 8 rows of x, in one pass over w: small batches and
// the verification of speculated tokens.
//
// As in qmv, a simdgroup takes NIBBLE_QMV_ROWS rows of w, and its lanes lie
// side by side along K. A code is dequantized once, in float, and multiplied
// with every row of x while it is in a register:
//
//              K ->   lane 0  lane 1  ...           for 4 codes at a time:
//   w row n           [codes] [codes]               w_hat[4] in registers
//   x row m           [  x  ] [  x  ]               sums[n][m] += x . w_hat
//
// The sum of a row of x does not depend on the number of other rows.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/product.h"
#include "kernels/qmv.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <int rows>  // of x, in one pass over w
struct QmvMulti : Transposed {
  static NIBBLE_INLINE constexpr int columns_of_tile() {
    return NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS;
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4*) {
    constexpr int kRows = NIBBLE_QMV_ROWS;
    constexpr int kCodes = lane_codes(Q::kBits);
    constexpr int kWords = words_of(kCodes, Q::kBits);
    static_assert(Q::kGroupSize % kCodes == 0, "a lane's codes share a group");

    const int M = p.M;
    const int N = p.N;
    const int K = p.weight.K;
    const int first_row = qmv_first_row(tgid, sgid);
    if (first_row >= N) {
      return;
    }
    const int first_x = int(tgid.y) * rows;

    // Past the last row of w or of x: the last row again, not stored.
    float sums[kRows][rows] = {};
    for (int k = int(lane) * kCodes; k < K; k += NIBBLE_SIMD_WIDTH * kCodes) {
      uint words[kRows][kWords];
      typename Q::Parameters affine[kRows];
#pragma clang loop unroll(full)
      for (int r = 0; r < kRows; ++r) {
        const int row = min(first_row + r, N - 1);
        load_words<kWords>(p.weight.words_at(row, k), words[r]);
        affine[r] = p.weight.affine_at(row, k);
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < kCodes; i += Q::kAtOnce) {
        vec<T, 4> x_held[rows][Q::kAtOnce / 4];
#pragma clang loop unroll(full)
        for (int m = 0; m < rows; ++m) {
          const size_t x_row = size_t(min(first_x + m, M - 1));
          const device T* from = p.x + x_row * size_t(K) + k + i;
#pragma clang loop unroll(full)
          for (int j = 0; j < Q::kAtOnce; j += 4) {
            x_held[m][j / 4] = *(const device vec<T, 4>*)(from + j);
          }
        }
#pragma clang loop unroll(full)
        for (int r = 0; r < kRows; ++r) {
          const typename Q::Codes codes(words[r], i);
#pragma clang loop unroll(full)
          for (int j = 0; j < Q::kAtOnce; ++j) {
            const float w_hat = Q::value(codes, j, affine[r]);
#pragma clang loop unroll(full)
            for (int m = 0; m < rows; ++m) {
              const float x_value = float(x_held[m][j / 4][j % 4]);
              sums[r][m] = fma(x_value, w_hat, sums[r][m]);
            }
          }
        }
      }
    }

#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
#pragma clang loop unroll(full)
      for (int m = 0; m < rows; ++m) {
        const float sum = simd_sum(sums[r][m]);
        const int column = first_row + r;
        const size_t at = size_t(first_x + m) * size_t(N) + size_t(column);
        if (lane == 0 && column < N && first_x + m < M) {
          p.y[at] = p.epilogue.finish(sum, column, at);
        }
      }
    }
  }
};

}  // namespace nibble
