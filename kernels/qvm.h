// y = x @ w_hat for few rows of x: w not transposed, as in a backward pass.
//
// x [M, N], w_hat [N, K], y [M, K]. The sum runs over the rows of w, and each
// lane keeps the same columns, a run of whole words. Half a simdgroup stands
// side by side along K, the other half one row below; the simdgroups of a
// threadgroup share out the rows:
//
//                 K ->  lane 0   lane 1  ...  lane 15
//   row n               [ run ]  [ run ]      [ run ]
//   row n + 1           lane 16  ...          lane 31
//   rows n + 2, n + 3   the next simdgroup
//
// Their sums are added in the order of the simdgroups. Accumulated in float,
// rounded once at the store.
#pragma once

#include <metal_simdgroup>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <typename T, typename S, int bits, int group_size, bool symmetric>
[[kernel]] void qvm(const device uint* w [[buffer(0)]],
                    const device S* scales [[buffer(1)]],
                    const device S* biases [[buffer(2)]],
                    const device T* x [[buffer(3)]],
                    device T* y [[buffer(4)]],
                    constant MatmulParams& params [[buffer(5)]],
                    threadgroup float* scratch [[threadgroup(0)]],
                    uint3 tgid [[threadgroup_position_in_grid]],
                    uint sgid [[simdgroup_index_in_threadgroup]],
                    uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kCodes = run_codes(bits);
  constexpr int kColumns = NIBBLE_QVM_LANES * kCodes;
  constexpr int kRowsAtOnce = NIBBLE_SIMD_WIDTH / NIBBLE_QVM_LANES;
  static_assert(group_size % kCodes == 0, "a run lies inside one group");

  const int N = params.N;
  const int K = params.K;
  const QuantizedMatrix<S, bits, group_size, symmetric> weight(
      w, scales, biases, N, K, weight_of(params, tgid.z));
  const size_t x_row = size_t(tgid.z) * size_t(params.M) + size_t(tgid.y);
  x += x_row * size_t(N);
  y += x_row * size_t(K);

  const int first_column = int(tgid.x) * kColumns;
  const int my_column = int(lane) % NIBBLE_QVM_LANES * kCodes;
  const int k = first_column + my_column;
  float sums[kCodes] = {};
  if (k < K) {
    int n = int(sgid) * kRowsAtOnce + int(lane) / NIBBLE_QVM_LANES;
    for (; n < N; n += NIBBLE_QVM_SIMDGROUPS * kRowsAtOnce) {
      uint words[words_of(kCodes, bits)];
      load_words<words_of(kCodes, bits)>(weight.words_at(n, k), words);
      const float2 affine = weight.affine_at(n, k);
      const float x_held = float(x[n]);
#pragma clang loop unroll(full)
      for (int i = 0; i < kCodes; ++i) {
        sums[i] = fma(x_held, dequantize_code<bits>(words, i, affine), sums[i]);
      }
    }
  }

  threadgroup float* mine = scratch + int(sgid) * kColumns + my_column;
#pragma clang loop unroll(full)
  for (int i = 0; i < kCodes; ++i) {
    const float sum =
        sums[i] + simd_shuffle_xor(sums[i], ushort(NIBBLE_QVM_LANES));
    if (lane < NIBBLE_QVM_LANES) {
      mine[i] = sum;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  int column = int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
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

}  // namespace nibble
