// y_i = x @ w_hat_i^T + bias_i for two or three matrices and one x, in one
// launch: queries, keys and values, each from its own buffers into its own.
//
//   tgid.x:  | tiles of w_0 .......... | tiles of w_1 | tiles of w_2 |
//
// A threadgroup does for its matrix what it does in qmv and qmv_multi, so that
// the bits of y are the same; it finds out which one before anything else, and
// all of its threads alike.
#pragma once

#include <metal_stdlib>

#include "kernels/product.h"
#include "kernels/qmv.h"
#include "kernels/qmv_multi.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Threadgroups along the rows of one matrix; none of one that is not there.
inline int joint_tiles(int N) {
  constexpr int kRows = NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS;
  return (N + kRows - 1) / kRows;
}

template <typename Family,
          typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric>
[[kernel]] void joint(const device uint* w0 [[buffer(0)]],
                      const device S* scales0 [[buffer(1)]],
                      const device S* biases0 [[buffer(2)]],
                      const device uint* w1 [[buffer(3)]],
                      const device S* scales1 [[buffer(4)]],
                      const device S* biases1 [[buffer(5)]],
                      const device uint* w2 [[buffer(6)]],
                      const device S* scales2 [[buffer(7)]],
                      const device S* biases2 [[buffer(8)]],
                      const device T* x [[buffer(9)]],
                      const device T* bias0 [[buffer(10)]],
                      const device T* bias1 [[buffer(11)]],
                      const device T* bias2 [[buffer(12)]],
                      device T* y0 [[buffer(13)]],
                      device T* y1 [[buffer(14)]],
                      device T* y2 [[buffer(15)]],
                      constant JointParams& params [[buffer(16)]],
                      uint3 tgid [[threadgroup_position_in_grid]],
                      uint sgid [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
  const int second = joint_tiles(params.N0);
  const int third = second + joint_tiles(params.N1);
  const int tile = int(tgid.x);
  const int which = tile < second ? 0 : tile < third ? 1 : 2;

  const int N = which == 0 ? params.N0 : which == 1 ? params.N1 : params.N2;
  const int first_tile = which == 0 ? 0 : which == 1 ? second : third;
  const device uint* w = which == 0 ? w0 : which == 1 ? w1 : w2;
  const device S* scales = which == 0   ? scales0
                           : which == 1 ? scales1
                                        : scales2;
  const device S* biases = which == 0   ? biases0
                           : which == 1 ? biases1
                                        : biases2;
  const device T* bias = which == 0 ? bias0 : which == 1 ? bias1 : bias2;
  device T* y = which == 0 ? y0 : which == 1 ? y1 : y2;
  const int epilogue = (params.biased >> which) & 1 ? NIBBLE_BIAS : 0;

  const Product<T, S, bits, group_size, symmetric> p = {
      {w, scales, biases, N, params.K, 0},
      x,
      {bias, x, epilogue, 0},
      y,
      params.M,
      N};
  Family::run(
      p, uint3(uint(tile - first_tile), tgid.y, tgid.z), int(sgid), lane);
}

}  // namespace nibble
