// y = x @ w_hat for few rows of x: w not transposed, as in a backward pass.
//
// x [M, N], w_hat [N, K], y [M, K]. The sum runs over the rows of w. Each lane
// keeps the same columns, a run of whole words. Half a simdgroup lies side by
// side along K, the other half one row below. The simdgroups of a threadgroup
// share the rows:
//
//                 K ->  lane 0   lane 1  ...  lane 15
//   row n               [ run ]  [ run ]      [ run ]
//   row n + 1           lane 16  ...          lane 31
//   rows n + 2, n + 3   the next simdgroup
//
// Their sums are added in the order of the simdgroups. Sums are float and are
// rounded once, at the store.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

struct Qvm : NotTransposed {
  // Each simdgroup's sums.
  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return NIBBLE_QVM_LANES * run_codes(Q::kBits) * NIBBLE_QVM_SIMDGROUPS *
           int(sizeof(float));
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4* memory) {
    constexpr int kCodes = run_codes(Q::kBits);
    constexpr int kWords = words_of(kCodes, Q::kBits);
    constexpr int kColumns = NIBBLE_QVM_LANES * kCodes;
    constexpr int kRowsAtOnce = NIBBLE_SIMD_WIDTH / NIBBLE_QVM_LANES;
    static_assert(Q::kGroupSize % kCodes == 0, "a run lies inside one group");

    const int N = p.N;
    const int K = p.weight.K;
    const device T* x = p.x + size_t(tgid.y) * size_t(N);
    device T* y = p.y + size_t(tgid.y) * size_t(K);
    threadgroup float* scratch = (threadgroup float*)memory;

    const int first_column = int(tgid.x) * kColumns;
    const int my_column = int(lane) % NIBBLE_QVM_LANES * kCodes;
    const int k = first_column + my_column;
    float sums[kCodes] = {};
    if (k < K) {
      int n = sgid * kRowsAtOnce + int(lane) / NIBBLE_QVM_LANES;
      for (; n < N; n += NIBBLE_QVM_SIMDGROUPS * kRowsAtOnce) {
        uint words[kWords];
        load_words<kWords>(p.weight.words_at(n, k), words);
        const typename Q::Parameters affine = p.weight.affine_at(n, k);
        const float x_held = float(x[n]);
#pragma clang loop unroll(full)
        for (int i = 0; i < kCodes; i += Q::kAtOnce) {
          const typename Q::Codes codes(words, i);
#pragma clang loop unroll(full)
          for (int j = 0; j < Q::kAtOnce; ++j) {
            sums[i + j] = fma(x_held, Q::value(codes, j, affine), sums[i + j]);
          }
        }
      }
    }

    threadgroup float* mine = scratch + sgid * kColumns + my_column;
#pragma clang loop unroll(full)
    for (int i = 0; i < kCodes; ++i) {
      const float sum =
          sums[i] + simd_shuffle_xor(sums[i], ushort(NIBBLE_QVM_LANES));
      if (lane < NIBBLE_QVM_LANES) {
        mine[i] = sum;
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    int column = sgid * NIBBLE_SIMD_WIDTH + int(lane);
    for (; column < min(kColumns, K - first_column);
         column += NIBBLE_QVM_SIMDGROUPS * NIBBLE_SIMD_WIDTH) {
      float sum = 0.0f;
#pragma clang loop unroll(full)
      for (int s = 0; s < NIBBLE_QVM_SIMDGROUPS; ++s) {
        sum += scratch[s * kColumns + column];
      }
      y[first_column + column] = T(sum);
    }
  }
};

}  // namespace nibble
