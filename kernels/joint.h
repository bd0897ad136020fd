// y_i = x @ w_hat_i^T + bias_i for two or three matrices and one x, in one
// launch: queries, keys and values, each with its own buffers.
//
//   tgid.x:  | tiles of w_0 .......... | tiles of w_1 | tiles of w_2 |
//
// A threadgroup works on one matrix, exactly as in qmv, qmv_multi or
// qmm_skinny, so y has the same bits. It finds its matrix first, and all its
// threads find the same one.
#pragma once

#include <metal_stdlib>

#include "kernels/product.h"
#include "kernels/qmm_skinny.h"
#include "kernels/qmv.h"
#include "kernels/qmv_multi.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

template <typename T, typename Q>
struct JointOperands {
  typename Q::Arrays w[NIBBLE_JOINT];
  const device T* x;
  const device T* bias[NIBBLE_JOINT];
  device T* y[NIBBLE_JOINT];
};

// Returns the product that threadgroup `tile` works on, and changes `tile` to
// its index within that product.
template <typename Family, typename T, typename Q>
NIBBLE_INLINE Product<T, Q> product_of_joint(
    const thread JointOperands<T, Q>& all,
    constant JointParams& params,
    thread uint3& tile) {
  constexpr int kColumns = Family::columns_of_tile();
  // A matrix that does not exist has no tiles.
  const int second = (params.N0 + kColumns - 1) / kColumns;
  const int third = second + (params.N1 + kColumns - 1) / kColumns;
  const int across = int(tile.x);
  const int which = across < second ? 0 : across < third ? 1 : 2;

  const int N = which == 0 ? params.N0 : which == 1 ? params.N1 : params.N2;
  tile.x = uint(across - (which == 0 ? 0 : which == 1 ? second : third));
  const int epilogue = (params.biased >> which) & 1 ? NIBBLE_BIAS : 0;
  return {
      {Q::Arrays::choose(which, all.w[0], all.w[1], all.w[2]), N, params.K, 0},
      all.x,
      {one_of(which, all.bias[0], all.bias[1], all.bias[2]),
       all.x,
       epilogue,
       0},
      one_of(which, all.y[0], all.y[1], all.y[2]),
      params.M,
      N};
}

template <typename Family, typename T, typename Q>
[[kernel]] void joint(const device uint* w0 [[buffer(0)]],
                      const device typename Q::Scale* scales0 [[buffer(1)]],
                      const device typename Q::Scale* biases0 [[buffer(2)]],
                      const device uint* w1 [[buffer(3)]],
                      const device typename Q::Scale* scales1 [[buffer(4)]],
                      const device typename Q::Scale* biases1 [[buffer(5)]],
                      const device uint* w2 [[buffer(6)]],
                      const device typename Q::Scale* scales2 [[buffer(7)]],
                      const device typename Q::Scale* biases2 [[buffer(8)]],
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
  constexpr int kMemory = Family::template memory_bytes<T, Q>() / 16;
  threadgroup uint4 memory[kMemory];
  const JointOperands<T, Q> all = {
      {{w0, scales0, biases0}, {w1, scales1, biases1}, {w2, scales2, biases2}},
      x,
      {bias0, bias1, bias2},
      {y0, y1, y2}};
  uint3 tile = tgid;
  const Product<T, Q> p = product_of_joint<Family, T, Q>(all, params, tile);
  Family::run(p, tile, int(sgid), lane, memory);
}

}  // namespace nibble
