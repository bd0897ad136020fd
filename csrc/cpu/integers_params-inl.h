// Products with 8-bit activations: from the integer sum of a group to a float.
//
// A strip has as many weight rows as a vector has lanes.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/packed-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Codes of a row whose scales and biases are read together. A panel of this
// length with 4-bit codes of 32 rows is 16 KB and leaves room in a first-level
// cache.
constexpr int kIntBlockK = 1024;
static_assert(kBlockK % kIntBlockK == 0);  // as in Weights::columns

// Returns the row for a lane of a strip. Lanes beyond the last row read the
// last row, and their results are not stored.
inline int strip_row(const Weights& w, int row) {
  return smaller(row, w.N - 1);
}

// Prefetches the scales and biases of a row.
inline void prefetch_params(const Weights& w, size_t row, Range columns) {
  size_t size = size_of(w.scale_dtype);
  int group_size = w.format.group_size;
  size_t at = (row * (w.K / group_size) + columns.begin / group_size) * size;
  int bytes = (columns.end - columns.begin) / group_size * size;
  by_param_arrays(w, [&](const uint8_t* p) { prefetch(p + at, bytes); });
}

// The scales and biases of kRows rows from `row` on, [groups, kRows]. Those of
// the next rows are prefetched.
template <class V, class Q, int kRows>
struct StripParams {
  alignas(64) float scale[kMostGroups][kRows];
  alignas(64) float bias[kMostGroups][kRows];

  StripParams(const Weights& w, int row, Range columns) {
    int groups = (columns.end - columns.begin) / w.format.group_size;
    if (w.packed) {
      read_packed(w, row, columns, groups);
      return;
    }
    for (int strip = 0; strip < kRows; strip += V::kLanes) {
      alignas(64) float rows[2][V::kLanes][kMostGroups];
      with_scale_dtype<Q>(w.scale_dtype, [&](auto dtype) {
        for (int r = 0; r < V::kLanes; ++r) {
          read_params<V, Q, decltype(dtype)::value>(
              w,
              strip_row(w, row + strip + r),
              columns,
              rows[0][r],
              rows[1][r]);
          prefetch_params(w, row + kRows + strip + r, columns);
        }
      });
      spread(rows[0], groups, &scale[0][strip]);
      if constexpr (Q::kBiased) spread(rows[1], groups, &bias[0][strip]);
    }
  }

  // The biases of group g, from lane `first` on.
  typename V::F biases(int g, int first) const {
    if constexpr (Q::kBiased) {
      return V::load(bias[g] + first);
    } else {
      return V::zero();
    }
  }

 private:
  void read_packed(const Weights& w, int row, Range columns, int groups) {
    size_t group_bytes =
        V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
    for (int strip = 0; strip < kRows; strip += V::kLanes) {
      const uint8_t* p =
          packed_strip<V>(w, row + strip, columns.begin) +
          bytes_of(w.format.group_size, w.format.bits) * V::kLanes;
      for (int g = 0; g < groups; ++g, p += group_bytes) {
        PackedParams<V, Q> params(p, w.format, w.scale_dtype);
        V::store(&scale[g][strip], params.scale);
        if constexpr (Q::kBiased) V::store(&bias[g][strip], params.bias);
      }
    }
  }

  static void spread(const float (&from)[V::kLanes][kMostGroups],
                     int groups,
                     float* to) {
    const uint8_t* rows[V::kLanes];
    for (int g = 0; g < groups; g += V::kLanes) {
      for (int r = 0; r < V::kLanes; ++r) {
        rows[r] = reinterpret_cast<const uint8_t*>(from[r] + g);
      }
      V::transpose(rows,
                   smaller(groups - g, V::kLanes),
                   reinterpret_cast<int32_t*>(to + g * kRows),
                   kRows);
    }
  }
};

// Returns sum + the products of a group of a strip's rows. All products use
// this function, so the order is the same for every number of activation rows.
template <class V, class Q>
[[gnu::always_inline]] inline typename V::F add_group(typename V::I dots,
                                                      typename V::F scale,
                                                      typename V::F bias,
                                                      typename V::F x_scale,
                                                      const float* x_sum,
                                                      typename V::F sum) {
  if constexpr (Q::kBiased) {
    typename V::F product = V::mul(V::to_float(dots), x_scale);
    return V::fma(bias, V::set1(*x_sum), V::fma(product, scale, sum));
  } else {
    // An integer below 2^24, so the conversion is exact.
    typename V::F exact = V::to_float(V::int_add(dots, V::broadcast4(x_sum)));
    return V::fma(V::mul(exact, x_scale), scale, sum);
  }
}

}  // namespace
}  // namespace nibble::cpu
