// The two products of attention, of fp32 panels. V is a SIMD facade.
#pragma once

#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

// c [kM, kV vectors] += a [kM, count] * b [count, kV vectors]. Lanes run over
// the columns of b.
template <class V, int kM, int kV>
void outer_tile(const float* a,
                int a_stride,
                const float* b,
                int64_t b_stride,
                int count,
                float* c,
                int c_stride) {
  typename V::F sum[kM][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sum[m][v] = V::load(c + m * c_stride + v * V::kLanes);
    }
  }
  for (int k = 0; k < count; ++k) {
    typename V::F row[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      row[v] = V::load(b + k * b_stride + v * V::kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F factor = V::set1(a[m * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) {
        sum[m][v] = V::fma(factor, row[v], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      V::store(c + m * c_stride + v * V::kLanes, sum[m][v]);
    }
  }
}

// c [M, N] += a [M, count] * b [count, N]; N in whole vectors.
template <class V>
void add_product(const float* a,
                 int a_stride,
                 int M,
                 const float* b,
                 int64_t b_stride,
                 int count,
                 float* c,
                 int c_stride,
                 int N) {
  constexpr int kWide = 4 * V::kLanes;
  int n = 0;
  auto columns = [&](auto vectors) {
    constexpr int kV = decltype(vectors)::value;
    for (int m = 0; m < M; m += V::kTileRows) {
      with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto rows) {
        outer_tile<V, decltype(rows)::value, kV>(a + m * a_stride,
                                                 a_stride,
                                                 b + n,
                                                 b_stride,
                                                 count,
                                                 c + m * c_stride + n,
                                                 c_stride);
      });
    }
    n += kV * V::kLanes;
  };
  while (n + kWide <= N) columns(Int<4>{});
  while (n < N) columns(Int<1>{});
}

// c [M, N] = a [M, D] * b [N, D]^T, lanes over D (whole vectors).
template <class V, int kM>
void inner_tile(
    const float* a, const float* b, int64_t b_stride, int D, int N, float* c) {
  for (int n = 0; n < N; n += 4) {
    // Beyond the last row the last row is read again and its products dropped.
    const float* rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = b + smaller(n + i, N - 1) * b_stride;
    typename V::F sum[kM][4];
    for (auto& row : sum) {
      for (auto& s : row) s = V::zero();
    }
    for (int d = 0; d < D; d += V::kLanes) {
      typename V::F k[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) k[i] = V::load(rows[i] + d);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        typename V::F q = V::load(a + m * D + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[m][i] = V::fma(q, k[i], sum[m][i]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      V::sum4(
          sum[m][0], sum[m][1], sum[m][2], sum[m][3], c + m * kKeyBlock + n);
    }
  }
}

template <class V>
void inner_product(const float* a,
                   int M,
                   const float* b,
                   int64_t b_stride,
                   int D,
                   int N,
                   float* c) {
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto rows) {
      inner_tile<V, decltype(rows)::value>(
          a + m * D, b, b_stride, D, N, c + m * kKeyBlock);
    });
  }
}

}  // namespace
}  // namespace nibble::cpu
