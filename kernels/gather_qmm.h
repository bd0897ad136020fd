// Products of one row each, sorted by their weight matrix, in tiles: for the
// experts of a mixture that have many rows.
//
// y[b] = x[lhs[b]] @ w_hat[rhs[b]]^T or x[lhs[b]] @ w_hat[rhs[b]], w_hat
// [E, N, K], lhs and rhs [B].
#pragma once

#include <metal_stdlib>

#include "kernels/product.h"
#include "kernels/qmm.h"
#include "kernels/qmm_n.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// A tile takes BM products, and computes its sums once for each expert among
// them, by the rows() of a family of tiles:
//
//   b     0 1 2 3 4 5 6 7 ...           BM = 8
//   rhs   2 2 2 2 2 7 7 9 ...           three times: rows 0-4, 5-6 and 7
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
  const int first_row = Family::first_row(tgid);
  const int last_row = min(Family::first_row(tgid + uint3(0, 1, 0)), params.B);
  int begin = first_row;
  while (begin < last_row) {
    const uint expert = rhs[begin];
    int end = begin + 1;
    while (end < last_row && rhs[end] == expert) {
      ++end;
    }
    const Product<T, Q> p{
        {{w, scales, biases}, params.N, params.K, int(expert)},
        x,
        {},
        y,
        params.B,
        params.N};
    Family::rows(p, lhs, begin, end, tgid, int(sgid), lane, memory);
    // The next expert's blocks overwrite memory that may still be read.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    begin = end;
  }
}

}  // namespace nibble
