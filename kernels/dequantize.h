// w_hat [rows, K] from a packed matrix: one thread for each run of whole words.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/packing.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <typename T, typename Q>
[[kernel]] void dequantize(const device uint* w [[buffer(0)]],
                           const device typename Q::Scale* scales [[buffer(1)]],
                           const device typename Q::Scale* biases [[buffer(2)]],
                           device T* w_hat [[buffer(3)]],
                           constant DequantizeParams& params [[buffer(4)]],
                           uint3 tgid [[threadgroup_position_in_grid]],
                           uint sgid [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kCodes = run_codes(Q::kBits);
  constexpr int kWords = words_of(kCodes, Q::kBits);
  static_assert(Q::kGroupSize % kCodes == 0, "a run lies inside one group");

  const int thread_in_row = int(tgid.x) * NIBBLE_DEQUANTIZE_THREADS +
                            int(sgid) * NIBBLE_SIMD_WIDTH + int(lane);
  const int k = thread_in_row * kCodes;
  const int row = int(tgid.y);
  if (k >= params.K) {
    return;
  }
  const QuantizedMatrix<Q> weight(
      {w, scales, biases}, params.rows, params.K, 0);
  uint words[kWords];
  load_words<kWords>(weight.words_at(row, k), words);
  const typename Q::Parameters affine = weight.affine_at(row, k);

  device vec<T, 4>* out =
      (device vec<T, 4>*)(w_hat + size_t(row) * size_t(params.K) + size_t(k));
#pragma clang loop unroll(full)
  for (int i = 0; i < kCodes; i += Q::kAtOnce) {
    const typename Q::Codes codes(words, i);
#pragma clang loop unroll(full)
    for (int j = 0; j < Q::kAtOnce; j += 4) {
      out[(i + j) / 4] = four_values<T, Q>(codes, j, affine);
    }
  }
}

}  // namespace nibble
