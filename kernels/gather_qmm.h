// Products of one row each, sorted by their weight matrix, in tiles: for the
// experts of a mixture that have many rows.
//
// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T or x[lhs[b]] @ w_hat[rhs[b]], w_hat
// [E, N, K], lhs and rhs [B].
#pragma once

#include <metal_stdlib>

#include "kernels/expert_rows.h"
#include "kernels/product.h"
#include "kernels/qmm.h"
#include "kernels/qmm_n.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <typename Family, typename T, typename Q>
[[kernel]] void gathered_sorted(const device uint* w [[buffer(0)]],
                                const device typename Q::Scale* scales
                                [[buffer(1)]],
                                const device typename Q::Scale* biases
                                [[buffer(2)]],
                                const device T* x [[buffer(3)]],
                                const device uint* lhs [[buffer(4)]],
                                const device uint* rhs [[buffer(5)]],
                                device T* y [[buffer(6)]],
                                constant GatherParams& params [[buffer(7)]],
                                uint3 tgid [[threadgroup_position_in_grid]],
                                uint sgid [[simdgroup_index_in_threadgroup]],
                                uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kMemory = Family::template memory_bytes<T, Q>() / 16;
  threadgroup uint4 memory[kMemory];
  const ExpertRows rows = rows_of_tile<Family::rows_of_tile()>(
      rhs, params.B, params.experts, int(tgid.y));
  if (rows.begin == rows.end) {
    return;
  }
  const Product<T, Q> p{
      {{w, scales, biases}, params.N, params.K, int(rhs[rows.begin])},
      x,
      {},
      y,
      rows.end,
      params.N};
  Family::rows(p, lhs, rows.begin, tgid, int(sgid), lane, memory);
}

}  // namespace nibble
