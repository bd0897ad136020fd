// x @ w_hat.
//
// Lanes run over k, which is here a dimension of y. Weights are decoded in
// blocks. A tile of kM rows x kV vectors of y stays in registers while n runs
// through the block.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Elements from one row to the next.
struct RowStrides {
  int panel = kColumnBlockK;
  int sums = kColumnBlockK;
};

// at(m, n) is the element of x for row m of the tile.
template <class V, int kM, int kV, typename At>
void column_tile(const float* panel,
                 int count,
                 const At& at,
                 float* sums,
                 RowStrides stride) {
  typename V::F sum[kM][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sum[m][v] = V::load(sums + m * stride.sums + v * V::kLanes);
    }
  }
  for (int n = 0; n < count; ++n) {
    typename V::F w[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      w[v] = V::load(panel + n * stride.panel + v * V::kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F a = V::set1(at(m, n));
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) sum[m][v] = V::fma(a, w[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      V::store(sums + m * stride.sums + v * V::kLanes, sum[m][v]);
    }
  }
}

// sums[m, k] += sum over n < count of at(m, n) * panel[n, k], for m < M and
// k < width, whole vectors.
template <class V, typename At>
void add_block(const float* panel,
               int width,
               int count,
               const At& at,
               int M,
               float* sums,
               RowStrides stride = {}) {
  constexpr int kWide = 4 * V::kLanes;
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto tile_rows) {
      constexpr int kM = decltype(tile_rows)::value;
      auto rows = [&](int i, int n) { return at(m + i, n); };
      float* out = sums + m * stride.sums;
      int k = 0;
      for (; k + kWide <= width; k += kWide) {
        column_tile<V, kM, 4>(panel + k, count, rows, out + k, stride);
      }
      for (; k < width; k += V::kLanes) {
        column_tile<V, kM, 1>(panel + k, count, rows, out + k, stride);
      }
    });
  }
}

template <class V>
void add_products(const FloatProduct& p) {
  auto at = [&](int m, int n) {
    return p.x[m * p.x_row_stride + n * p.x_step];
  };
  add_block<V>(p.panel,
               p.width,
               p.count,
               at,
               p.M,
               p.sums,
               {p.panel_stride, p.sums_stride});
}

// Weight rows decoded at a time for a single tile of x, which uses them once:
// [16, 256] is 16 KB and stays in a first-level cache.
constexpr int kRowsForFew = 16;

template <class V>
void multiply_columns(const Weights& w,
                      const float* x,
                      int M,
                      Range columns,
                      Dtype dtype,
                      void* y,
                      float* scratch) {
  float* sums = scratch + kPanelFloats;
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  int step = M <= V::kTileRows ? kRowsForFew : kColumnBlockN;
  for (int k = columns.begin; k < columns.end; k += kColumnBlockK) {
    Range block{k, smaller(k + kColumnBlockK, columns.end)};
    int width = block.end - block.begin;
    for (int i = 0; i < M * kColumnBlockK; ++i) sums[i] = 0;
    with_codes(w.format, [&](auto codes) {
      using Q = decltype(codes);
      for (int n = 0; n < w.N; n += step) {
        int count = smaller(step, w.N - n);
        by_rows<4>(count, [&](auto r, int i) {
          decode_rows<V, Q, decltype(r)::value>(
              w, n + i, block, scratch + i * kColumnBlockK, kColumnBlockK);
        });
        auto at = [&](int m, int i) { return x[size_t(m) * w.N + n + i]; };
        add_block<V>(scratch, width, count, at, M, sums);
      }
      for (int m = 0; m < M; ++m) {
        float* row = sums + m * kColumnBlockK;
        to_natural_order<V, Q::kBits>(row, width);
        round_floats<V>(dtype,
                        row,
                        width,
                        static_cast<uint8_t*>(y) +
                            (static_cast<size_t>(m) * w.K + k) * size);
      }
    });
  }
}

}  // namespace
}  // namespace nibble::cpu
