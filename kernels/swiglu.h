// y = silu(x @ gate^T) * (x @ up^T) for one row of x, in one launch: the first
// half of a gated MLP. silu(g) = g / (1 + exp(-g)), in float.
//
// Two launches and the activation between them become one, and nothing between
// them is rounded. As in qmv, a simdgroup takes NIBBLE_QMV_ROWS rows, here of
// both matrices.
#pragma once

#include <metal_math>
#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/qmv.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// y [N] from one row x [K] and a matrix each of gate and up.
template <typename T, typename S, int bits, int group_size, bool symmetric>
inline void swiglu_rows(
    const thread QuantizedMatrix<S, bits, group_size, symmetric>& gate,
    const thread QuantizedMatrix<S, bits, group_size, symmetric>& up,
    const device T* x,
    device T* y,
    int N,
    int first_row,
    int lane) {
  float gates[NIBBLE_QMV_ROWS];
  float ups[NIBBLE_QMV_ROWS];
  qmv_rows<T, S, bits, group_size, symmetric, NIBBLE_SIMD_WIDTH>(
      gate, x, N, first_row, lane, gates);
  qmv_rows<T, S, bits, group_size, symmetric, NIBBLE_SIMD_WIDTH>(
      up, x, N, first_row, lane, ups);
#pragma clang loop unroll(full)
  for (int r = 0; r < NIBBLE_QMV_ROWS; ++r) {
    ups[r] *= gates[r] / (1.0f + exp(-gates[r]));
  }
  store_rows(ups, Epilogue<T>(), y, N, first_row, lane);
}

template <typename T, typename S, int bits, int group_size, bool symmetric>
[[kernel]] void swiglu(const device uint* gate_w [[buffer(0)]],
                       const device S* gate_scales [[buffer(1)]],
                       const device S* gate_biases [[buffer(2)]],
                       const device uint* up_w [[buffer(3)]],
                       const device S* up_scales [[buffer(4)]],
                       const device S* up_biases [[buffer(5)]],
                       const device T* x [[buffer(6)]],
                       device T* y [[buffer(7)]],
                       constant MatmulParams& params [[buffer(8)]],
                       uint3 tgid [[threadgroup_position_in_grid]],
                       uint sgid [[simdgroup_index_in_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
  const int first_row =
      (int(tgid.x) * NIBBLE_QMV_SIMDGROUPS + int(sgid)) * NIBBLE_QMV_ROWS;
  if (first_row >= params.N) {
    return;
  }
  const int matrix = weight_of(params, tgid.z);
  const QuantizedMatrix<S, bits, group_size, symmetric> gate(
      gate_w, gate_scales, gate_biases, params.N, params.K, matrix);
  const QuantizedMatrix<S, bits, group_size, symmetric> up(
      up_w, up_scales, up_biases, params.N, params.K, matrix);
  const size_t row = size_t(tgid.z) * size_t(params.M) + size_t(tgid.y);
  swiglu_rows<T, S, bits, group_size, symmetric>(gate,
                                                 up,
                                                 x + row * size_t(params.K),
                                                 y + row * size_t(params.N),
                                                 params.N,
                                                 first_row,
                                                 int(lane));
}

// y[b] from x[lhs[b]] and the matrices rhs[b], as in gather.h.
template <typename T, typename S, int bits, int group_size, bool symmetric>
[[kernel]] void gather_swiglu(const device uint* gate_w [[buffer(0)]],
                              const device S* gate_scales [[buffer(1)]],
                              const device S* gate_biases [[buffer(2)]],
                              const device uint* up_w [[buffer(3)]],
                              const device S* up_scales [[buffer(4)]],
                              const device S* up_biases [[buffer(5)]],
                              const device T* x [[buffer(6)]],
                              const device uint* lhs [[buffer(7)]],
                              const device uint* rhs [[buffer(8)]],
                              device T* y [[buffer(9)]],
                              constant GatherParams& params [[buffer(10)]],
                              uint3 tgid [[threadgroup_position_in_grid]],
                              uint sgid [[simdgroup_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  const int first_row =
      (int(tgid.x) * NIBBLE_QMV_SIMDGROUPS + int(sgid)) * NIBBLE_QMV_ROWS;
  if (first_row >= params.N) {
    return;
  }
  const int expert = int(rhs[tgid.z]);
  const QuantizedMatrix<S, bits, group_size, symmetric> gate(
      gate_w, gate_scales, gate_biases, params.N, params.K, expert);
  const QuantizedMatrix<S, bits, group_size, symmetric> up(
      up_w, up_scales, up_biases, params.N, params.K, expert);
  const size_t x_row = size_t(lhs[tgid.z]) * size_t(params.M) + size_t(tgid.y);
  const size_t y_row = size_t(tgid.z) * size_t(params.M) + size_t(tgid.y);
  swiglu_rows<T, S, bits, group_size, symmetric>(gate,
                                                 up,
                                                 x + x_row * size_t(params.K),
                                                 y + y_row * size_t(params.N),
                                                 params.N,
                                                 first_row,
                                                 int(lane));
}

}  // namespace nibble
