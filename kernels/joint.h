// y_i = x @ w_hat_i^T + bias_i for two or three matrices and one x, in one
// launch: queries, keys and values, each from its own buffers into its own.
//
//   tgid.x:  | tiles of w_0 .......... | tiles of w_1 | tiles of w_2 |
//
// A threadgroup does for its matrix what it does in qmv, qmv_multi and
// qmm_skinny, so that the bits of y are the same; it finds out which one before
// anything else, and all of its threads alike.
#pragma once

#include <metal_stdlib>

#include "kernels/product.h"
#include "kernels/qmm_skinny.h"
#include "kernels/qmv.h"
#include "kernels/qmv_multi.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// One for each product.
template <typename Pointer>
struct Three {
  Pointer first;
  Pointer second;
  Pointer third;

  Pointer of(int which) const thread {
    return which == 0 ? first : which == 1 ? second : third;
  }
};

template <typename T, typename S>
struct JointOperands {
  Three<const device uint*> w;
  Three<const device S*> scales;
  Three<const device S*> biases;
  const device T* x;
  Three<const device T*> bias;
  Three<device T*> y;
};

// The product that threadgroup `tile` has a part in; of `tile`, what it is
// among those of that product.
template <typename Family,
          typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric>
inline Product<T, S, bits, group_size, symmetric> product_of_joint(
    const thread JointOperands<T, S>& all,
    constant JointParams& params,
    thread uint3& tile) {
  constexpr int kColumns = Family::columns_of_tile();
  // None of a matrix that is not there.
  const int second = (params.N0 + kColumns - 1) / kColumns;
  const int third = second + (params.N1 + kColumns - 1) / kColumns;
  const int across = int(tile.x);
  const int which = across < second ? 0 : across < third ? 1 : 2;

  const int N = which == 0 ? params.N0 : which == 1 ? params.N1 : params.N2;
  tile.x = uint(across - (which == 0 ? 0 : which == 1 ? second : third));
  const int epilogue = (params.biased >> which) & 1 ? NIBBLE_BIAS : 0;
  return {{all.w.of(which),
           all.scales.of(which),
           all.biases.of(which),
           N,
           params.K,
           0},
          all.x,
          {all.bias.of(which), all.x, epilogue, 0},
          all.y.of(which),
          params.M,
          N};
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
  const JointOperands<T, S> all = {{w0, w1, w2},
                                   {scales0, scales1, scales2},
                                   {biases0, biases1, biases2},
                                   x,
                                   {bias0, bias1, bias2},
                                   {y0, y1, y2}};
  uint3 tile = tgid;
  const Product<T, S, bits, group_size, symmetric> p =
      product_of_joint<Family, T, S, bits, group_size, symmetric>(
          all, params, tile);
  Family::run(p, tile, int(sgid), lane);
}

template <typename Family,
          typename T,
          typename S,
          int bits,
          int group_size,
          bool symmetric>
[[kernel]] void joint_with_memory(const device uint* w0 [[buffer(0)]],
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
                                  threadgroup uint4* memory [[threadgroup(0)]],
                                  uint3 tgid [[threadgroup_position_in_grid]],
                                  uint sgid [[simdgroup_index_in_threadgroup]],
                                  uint lane [[thread_index_in_simdgroup]]) {
  const JointOperands<T, S> all = {{w0, w1, w2},
                                   {scales0, scales1, scales2},
                                   {biases0, biases1, biases2},
                                   x,
                                   {bias0, bias1, bias2},
                                   {y0, y1, y2}};
  uint3 tile = tgid;
  const Product<T, S, bits, group_size, symmetric> p =
      product_of_joint<Family, T, S, bits, group_size, symmetric>(
          all, params, tile);
  Family::run(p, tile, int(sgid), lane, memory);
}

}  // namespace nibble
