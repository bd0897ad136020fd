// The gradients of scales and biases: sums over the groups of
// d = left^T @ right, [N, K].
//
// A block of d is fp32 sums in a second-level cache. Panels of left and right
// meet there as in the product that is not transposed (columns-inl.h), so no
// array [N, K] exists.
#pragma once

#include "csrc/cpu/columns-inl.h"
#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// out[i] = `count` elements of row rows[i] of p, from column `column` on; rows
// of p have `width` elements, rows of out are `stride` apart and have room for
// whole vectors.
template <class V>
void gather_rows(Dtype dtype,
                 const uint8_t* p,
                 size_t width,
                 const uint32_t* rows,
                 int row_count,
                 Range columns,
                 float* out,
                 int stride) {
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    for (int i = 0; i < row_count; ++i) {
      to_floats<V, kDtype>(
          p + (rows[i] * width + columns.begin) * size_of(kDtype),
          columns.end - columns.begin,
          out + size_t(i) * stride);
    }
  });
}

// Reduces sums [rows, columns] of d to groups.
template <class V, class Q>
void reduce_groups(const Weights& w,
                   Range rows,
                   Range columns,
                   const float* sums,
                   float* scales,
                   float* biases) {
  int group_size = w.format.group_size;
  auto unit = V::template group<Q>(1, 0);
  for (int n = rows.begin; n < rows.end; ++n, sums += kColumnBlockK) {
    const uint8_t* codes = w.codes + n * bytes_of(w.K, Q::kBits) +
                           bytes_of(columns.begin, Q::kBits);
    for (int k = columns.begin; k < columns.end; k += group_size) {
      typename V::F weighted = V::zero(), plain = V::zero();
      for (int i = 0; i < group_size; i += V::kLanes) {
        typename V::F d = V::load(sums + (k - columns.begin) + i);
        typename V::F q = V::template decode<Q>(codes, unit);
        if constexpr (!V::template kNatural<Q::kBits>) {
          q = V::template to_natural_order<Q::kBits>(q);
        }
        weighted = V::fma(q, d, weighted);
        plain = V::add(plain, d);
        codes += bytes_of(V::kLanes, Q::kBits);
      }
      size_t at = size_t(n) * (w.K / group_size) + k / group_size;
      scales[at] = V::sum(weighted);
      biases[at] = V::sum(plain);
    }
  }
}

template <class V>
void group_gradients(const Weights& w,
                     const RowPairs& pairs,
                     Range rows,
                     Range columns,
                     float* scales,
                     float* biases,
                     float* scratch) {
  float* right = scratch;
  float* sums = scratch + kPanelFloats;
  float* left = sums + size_t{kGradientRows} * kColumnBlockK;
  int M = rows.end - rows.begin, width = columns.end - columns.begin;
  for (int i = 0; i < M * kColumnBlockK; ++i) sums[i] = 0;
  for (int r = 0; r < pairs.count; r += kColumnBlockN) {
    int count = smaller(kColumnBlockN, pairs.count - r);
    gather_rows<V>(pairs.dtype,
                   pairs.left,
                   w.N,
                   pairs.left_rows + r,
                   count,
                   rows,
                   left,
                   kGradientRows);
    gather_rows<V>(pairs.dtype,
                   pairs.right,
                   w.K,
                   pairs.right_rows + r,
                   count,
                   columns,
                   right,
                   kColumnBlockK);
    auto at = [&](int m, int i) { return left[i * kGradientRows + m]; };
    add_block<V>(right, width, count, at, M, sums);
  }
  with_codes(w.format, [&](auto codes) {
    reduce_groups<V, decltype(codes)>(w, rows, columns, sums, scales, biases);
  });
}

}  // namespace
}  // namespace nibble::cpu
