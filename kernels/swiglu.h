// y = silu(x @ gate^T) * (x @ up^T) for one row of x, in one launch: the first
// half of a gated MLP. silu(g) = g / (1 + exp(-g)), in float.
//
// One launch replaces two products and the activation between them, and nothing
// between them is rounded. As in qmv, a simdgroup takes NIBBLE_QMV_ROWS rows,
// here of both matrices.
#pragma once

#include <metal_math>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/product.h"
#include "kernels/qmv.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Computes row `row` of y; p.weight is the gate.
template <typename T, typename Q>
NIBBLE_INLINE void swiglu_row(const thread Product<T, Q>& p,
                              const thread QuantizedMatrix<Q>& up,
                              uint3 tgid,
                              int sgid,
                              int lane) {
  const int row = int(tgid.y);
  const int first_row = qmv_first_row(tgid, sgid);
  if (first_row >= p.N) {
    return;
  }
  const device T* x = p.x + size_t(row) * size_t(up.K);
  float gates[NIBBLE_QMV_ROWS];
  float ups[NIBBLE_QMV_ROWS];
  qmv_rows<T, Q, NIBBLE_SIMD_WIDTH>(p.weight, x, p.N, first_row, lane, gates);
  qmv_rows<T, Q, NIBBLE_SIMD_WIDTH>(up, x, p.N, first_row, lane, ups);
#pragma clang loop unroll(full)
  for (int r = 0; r < NIBBLE_QMV_ROWS; ++r) {
    ups[r] *= gates[r] / (1.0f + exp(-gates[r]));
  }
  const size_t offset = size_t(row) * size_t(p.N);
  store_rows(ups, p.epilogue, p.y + offset, p.N, first_row, lane);
}

template <typename T, typename Q>
[[kernel]] void swiglu(const device uint* gate_w [[buffer(0)]],
                       const device typename Q::Scale* gate_scales
                       [[buffer(1)]],
                       const device typename Q::Scale* gate_biases
                       [[buffer(2)]],
                       const device uint* up_w [[buffer(3)]],
                       const device typename Q::Scale* up_scales [[buffer(4)]],
                       const device typename Q::Scale* up_biases [[buffer(5)]],
                       const device T* x [[buffer(6)]],
                       device T* y [[buffer(7)]],
                       constant MatmulParams& params [[buffer(8)]],
                       uint3 tgid [[threadgroup_position_in_grid]],
                       uint sgid [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
  const int matrix = weight_of(params, tgid.z);
  const QuantizedMatrix<Q> up(
      {up_w, up_scales, up_biases}, params.N, params.K, matrix);
  const Product<T, Q> p = product_of_batch<Transposed, T, Q>(
      {gate_w, gate_scales, gate_biases}, x, x, x, y, params, tgid.z);
  swiglu_row(p, up, tgid, int(sgid), int(lane));
}

// y[b] from x[lhs[b]] and the matrices rhs[b].
template <typename T, typename Q>
[[kernel]] void gather_swiglu(
    const device uint* gate_w [[buffer(0)]],
    const device typename Q::Scale* gate_scales [[buffer(1)]],
    const device typename Q::Scale* gate_biases [[buffer(2)]],
    const device uint* up_w [[buffer(3)]],
    const device typename Q::Scale* up_scales [[buffer(4)]],
    const device typename Q::Scale* up_biases [[buffer(5)]],
    const device T* x [[buffer(6)]],
    const device uint* lhs [[buffer(7)]],
    const device uint* rhs [[buffer(8)]],
    device T* y [[buffer(9)]],
    constant GatherParams& params [[buffer(10)]],
    uint3 tgid [[threadgroup_position_in_grid]],
    uint sgid [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]]) {
  const QuantizedMatrix<Q> up(
      {up_w, up_scales, up_biases}, params.N, params.K, int(rhs[tgid.z]));
  const Product<T, Q> p = product_of_indices<Transposed, T, Q>(
      {gate_w, gate_scales, gate_biases}, x, lhs, rhs, y, params, tgid.z);
  swiglu_row(p, up, tgid, int(sgid), int(lane));
}

}  // namespace nibble
