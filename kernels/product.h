// The entries of all families, and the product that a threadgroup works on.
//
// A family is a struct. Its template arguments are the numbers in its name, and
// run() computes the part of one product that belongs to threadgroup `tgid`:
//
//   template <int BM, int BN, int WK>
//   struct QmmSkinny : Transposed {
//     template <typename T,   // of x and y
//               typename Q>   // the format of w (format.h)
//     static void run(const thread Product<T, Q>& p, uint3 tgid, int sgid,
//                     uint lane, threadgroup uint4* memory)
//   };
//
// A family that needs threadgroup memory has memory_bytes<T, Q>(). The entries
// declare that memory. The host binds none: what it binds would stay bound for
// MLX's kernels in the same encoder.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// One product of a batch: y = x @ w_hat^T or x @ w_hat.
template <typename T, typename Q>
struct Product {
  QuantizedMatrix<Q> weight;  // w_hat [N, K]
  const device T* x;          // [M, columns_in]
  Epilogue<T> epilogue;
  device T* y;  // [M, columns_out]
  int M;
  int N;
};

struct NeedsNoMemory {
  template <typename T, typename Q>
  static NIBBLE_INLINE constexpr int memory_bytes() {
    return NIBBLE_LEAST_THREADGROUP_BYTES;
  }
};

// y [M, N] = x [M, K] @ w_hat^T.
struct Transposed : NeedsNoMemory {
  static NIBBLE_INLINE int columns_in(int, int K) { return K; }
  static NIBBLE_INLINE int columns_out(int N, int) { return N; }
};

// y [M, K] = x [M, N] @ w_hat.
struct NotTransposed : NeedsNoMemory {
  static NIBBLE_INLINE int columns_in(int N, int) { return N; }
  static NIBBLE_INLINE int columns_out(int, int K) { return K; }
};

// Product `batch` of x [batch, M, columns_in] and w [w_count, N, K].
template <typename Family, typename T, typename Q>
NIBBLE_INLINE Product<T, Q> product_of_batch(typename Q::Arrays w,
                                             const device T* x,
                                             const device T* bias,
                                             const device T* residual,
                                             device T* y,
                                             constant MatmulParams& params,
                                             uint batch) {
  const int N = params.N;
  const int K = params.K;
  const size_t first = size_t(batch) * size_t(params.M);
  const size_t first_y = first * size_t(Family::columns_out(N, K));
  return {{w, N, K, weight_of(params, batch)},
          x + first * size_t(Family::columns_in(N, K)),
          {bias, residual, params.epilogue, first_y},
          y + first_y,
          params.M,
          N};
}

// Product `index` of x [X, M, columns_in] and w [E, N, K]. Each product chooses
// its rows of x and its weight matrix, as the experts of a mixture do.
template <typename Family, typename T, typename Q>
NIBBLE_INLINE Product<T, Q> product_of_indices(typename Q::Arrays w,
                                               const device T* x,
                                               const device uint* lhs,
                                               const device uint* rhs,
                                               device T* y,
                                               constant GatherParams& params,
                                               uint index) {
  const int N = params.N;
  const int K = params.K;
  const size_t first_x = size_t(lhs[index]) * size_t(params.M);
  const size_t first_y = size_t(index) * size_t(params.M);
  return {{w, N, K, int(rhs[index])},
          x + first_x * size_t(Family::columns_in(N, K)),
          {},
          y + first_y * size_t(Family::columns_out(N, K)),
          params.M,
          N};
}

// A batch of products.
template <typename Family, typename T, typename Q>
[[kernel]] void dense(const device uint* w [[buffer(0)]],
                      const device typename Q::Scale* scales [[buffer(1)]],
                      const device typename Q::Scale* biases [[buffer(2)]],
                      const device T* x [[buffer(3)]],
                      const device T* bias [[buffer(4)]],
                      const device T* residual [[buffer(5)]],
                      device T* y [[buffer(6)]],
                      constant MatmulParams& params [[buffer(7)]],
                      uint3 tgid [[threadgroup_position_in_grid]],
                      uint sgid [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
  constexpr int kMemory = Family::template memory_bytes<T, Q>() / 16;
  threadgroup uint4 memory[kMemory];
  const Product<T, Q> p = product_of_batch<Family, T, Q>(
      {w, scales, biases}, x, bias, residual, y, params, tgid.z);
  Family::run(p, tgid, int(sgid), lane, memory);
}

// Products by index.
template <typename Family, typename T, typename Q>
[[kernel]] void gathered(const device uint* w [[buffer(0)]],
                         const device typename Q::Scale* scales [[buffer(1)]],
                         const device typename Q::Scale* biases [[buffer(2)]],
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
  const Product<T, Q> p = product_of_indices<Family, T, Q>(
      {w, scales, biases}, x, lhs, rhs, y, params, tgid.z);
  Family::run(p, tgid, int(sgid), lane, memory);
}

}  // namespace nibble
