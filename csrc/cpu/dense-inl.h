// x @ w^T with weights in float32 or a 16-bit type, by the tiles of the exact
// quantized products. Everything has internal linkage, as in kernels-inl.h.
#pragma once

#include "csrc/cpu/layers-inl.h"
#include "csrc/cpu/product-inl.h"

namespace nibble::cpu {
namespace {

// One block of k, weights as they lie. The rows of the next tile are
// prefetched, as in decode_tile.
template <class V, Dtype kDtype, int kR, int kM>
void dense_tile(const uint8_t* w,
                size_t row_bytes,
                int count,
                const float* x,
                size_t stride,
                float* sums) {
  constexpr int kSize = size_of(kDtype), kLine = 64;
  Tile<V, kR, kM> tile;
  auto add = [&](int k, int n) {
    typename V::F decoded[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      decoded[r] =
          V::template load_as_float<kDtype>(w + r * row_bytes + k * kSize, n);
    }
    tile.multiply(decoded, x + k, stride);
  };
  int k = 0;
  for (; k + V::kLanes <= count; k += V::kLanes) {
    if (k * kSize % kLine == 0) {
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        __builtin_prefetch(w + (kR + r) * row_bytes + k * kSize);
      }
    }
    add(k, V::kLanes);
  }
  if (k < count) add(k, count - k);
  tile.add_to(sums);
}

// sums [M, kBlockN] += the products of a block of weights and x [M, stride].
// Beyond the row, whole vectors of x are zero.
template <class V, Dtype kDtype>
void dense_block(const uint8_t* w,
                 size_t row_bytes,
                 int rows,
                 int count,
                 const float* x,
                 size_t stride,
                 int M,
                 float* panel,
                 float* sums) {
  bool few = M <= V::kTileRows;
  if (!few) {
    for (int r = 0; r < rows; ++r) {
      float* to = panel + r * kBlockK;
      to_floats<V, kDtype>(w + r * row_bytes, count, to);
      for (int i = count; i % V::kLanes != 0; ++i) to[i] = 0;
    }
  }
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto tile_rows) {
      by_rows<4>(rows, [&](auto r, int n) {
        constexpr int kR = decltype(r)::value, kM = decltype(tile_rows)::value;
        const float* from = x + m * stride;
        float* to = sums + m * kBlockN + n;
        if (few) {
          dense_tile<V, kDtype, kR, kM>(
              w + n * row_bytes, row_bytes, count, from, stride, to);
        } else {
          panel_tile<V, kR, kM>(panel + n * kBlockK, count, from, stride, to);
        }
      });
    });
  }
}

template <class V>
void multiply_dense(const DenseArgs& args, float* scratch) {
  float* panel = scratch;
  float* sums = scratch + kPanelFloats;
  size_t size = size_of(args.weight_dtype);
  size_t row_bytes = size_t(args.K) * size;
  int rows = args.rows.end - args.rows.begin;
  for (int i = 0; i < args.M * kBlockN; ++i) sums[i] = 0;
  for (int k = 0; k < args.K; k += kBlockK) {
    with_dtype(args.weight_dtype, [&](auto d) {
      dense_block<V, decltype(d)::value>(
          args.w + args.rows.begin * row_bytes + k * size,
          row_bytes,
          rows,
          smaller(kBlockK, args.K - k),
          args.x + k,
          args.x_stride,
          args.M,
          panel,
          sums);
    });
  }
  size_t out = size_of(args.dtype);
  for (int m = 0; m < args.M; ++m) {
    add_and_round<V>(args.dtype,
                     sums + m * kBlockN,
                     rows,
                     args.bias ? args.bias + args.rows.begin * out : nullptr,
                     nullptr,
                     args.y + (size_t(m) * args.N + args.rows.begin) * out);
  }
}

}  // namespace
}  // namespace nibble::cpu
