// x @ w_hat^T with activations rounded to 8 or 16 bits, group by group, and
// integer products.
//
// Lanes run over weight rows. A strip has as many rows as there are lanes. Its
// words are transposed into a panel: a vector holds the same word of each row
// and meets 4 activations, the same for all lanes.
//     panel       lane 0       lane 1    ..
//     word 0    w[0, 0:4]    w[1, 0:4]        x  x[m, 0:4] in every lane
//     word 1    w[0, 4:8]    w[1, 4:8]        x  x[m, 4:8]
//
// Sums inside a group are integers and exact. Groups are added in fp32, one
// after the other, so a result does not depend on the number of rows.
#pragma once

#include "csrc/cpu/integers_dots-inl.h"
#include "csrc/cpu/integers_packed-inl.h"
#include "csrc/cpu/integers_params-inl.h"
#include "csrc/cpu/integers_quantize-inl.h"
#include "csrc/cpu/integers_row-inl.h"

namespace nibble::cpu {
namespace {

// ---- panels -------------------------------------------------------------

template <class V>
constexpr int kPanelRows = V::kStrips * V::kLanes;

// panel [words, kPanelRows] = the words of rows from `row` on. The bytes that
// are read next are `ahead` bytes away and are prefetched: these are more
// streams, each short, than the hardware's prefetchers follow.
template <class V, int kBits>
void fill_panel(
    const Weights& w, int row, Range columns, ptrdiff_t ahead, int32_t* panel) {
  constexpr int kStride = kPanelRows<V>;
  int words = words_of<kBits>(columns.end - columns.begin);
  for (int strip = 0; strip < kStride; strip += V::kLanes) {
    constexpr bool kSpread = !stores_panel_words(kBits);
    const uint8_t* rows[V::kLanes];
    uint8_t bytes[kSpread ? V::kLanes : 1][kSpread ? kIntBlockK : 1];
    for (int r = 0; r < V::kLanes; ++r) {
      rows[r] = w.codes + strip_row(w, row + strip + r) * bytes_of(w.K, kBits) +
                bytes_of(columns.begin, kBits);
      if constexpr (kSpread) {
        int count = columns.end - columns.begin;
        for (int k = 0; k < count; k += 8) {
          const uint8_t* eight = rows[r] + k / 8 * kBits;
          __builtin_prefetch(eight + ahead);
          spread8<kBits>(eight, bytes[r] + k);
        }
        rows[r] = bytes[r];
      }
    }
    for (int d = 0; d < words; d += V::kLanes) {
      V::transpose(rows,
                   smaller(words - d, V::kLanes),
                   panel + d * kStride + strip,
                   kStride);
#pragma GCC unroll 16
      for (int r = 0; r < V::kLanes; ++r) {
        if constexpr (!kSpread) __builtin_prefetch(rows[r] + ahead);
        rows[r] += 4 * V::kLanes;
      }
    }
  }
}

// The same from packed weights, whose words need no transposition.
template <class V, int kBits>
void fill_panel_from_packed(const Weights& w,
                            int row,
                            Range columns,
                            int32_t* panel) {
  int groups = (columns.end - columns.begin) / w.format.group_size;
  size_t group_bytes =
      V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
  for (int strip = 0; strip < kPanelRows<V>; strip += V::kLanes) {
    const uint8_t* p = packed_strip<V>(w, row + strip, columns.begin);
    int32_t* to = panel + strip;
    for (int g = 0; g < groups; ++g, p += group_bytes) {
      prefetch(p + V::kAhead, static_cast<int>(group_bytes));
      auto put = [&](typename V::I word) __attribute__((always_inline)) {
        V::int_store(to, word);
        to += kPanelRows<V>;
      };
      by_packed_words<V, kBits>(p, w.format.group_size, put);
    }
  }
}

// ---- products -----------------------------------------------------------

// sums [kM, kPanelRows] += the products of a panel and kM activation rows.
template <class V, class Q, class A, int kM>
void int_tile(const int32_t* panel,
              const StripParams<V, Q, kPanelRows<V>>& params,
              QuantFormat format,
              Range columns,
              const QuantizedRows& x,
              int m,
              float* sums) {
  constexpr int kBits = Q::kBits;
  int first = columns.begin / format.group_size;
  int count = (columns.end - columns.begin) / format.group_size;
  for (int g = 0; g < count; ++g) {
    size_t at = x.group(m, first + g);
    DotSums<V, A, V::kStrips, kM> dots;
    clear<V, A, V::kStrips, kM>(dots);
    const Code<A>* codes = x.at<A>(m, columns.begin + g * format.group_size);
    for (int d = 0; d < words_of<kBits>(format.group_size); ++d) {
      typename V::I words[V::kStrips];
#pragma GCC unroll 4
      for (int s = 0; s < V::kStrips; ++s) {
        words[s] = V::int_load(panel + s * V::kLanes);
      }
      add_part<V, Q, A, 0>(words, codes, dots);
      panel += kPanelRows<V>;
      codes += kWordCodes<kBits>;
    }
#pragma GCC unroll 4
    for (int s = 0; s < V::kStrips; ++s) {
      typename V::F scale = V::load(params.scale[g] + s * V::kLanes);
      typename V::F bias = params.biases(g, s * V::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        float* to = sums + m * kPanelRows<V> + s * V::kLanes;
        constexpr int kLast = kPlanes<A> - 1;
        auto dot = join<V, A>(dots[0][s][m], dots[kLast][s][m]);
        typename V::F sum = add_group<V, Q>(dot,
                                            scale,
                                            bias,
                                            V::set1(x.scales[at + m]),
                                            x.sums + at + m,
                                            V::load(to));
        V::store(to, sum);
      }
    }
  }
}

template <class V, class A>
void multiply_panels(const Weights& w,
                     const QuantizedRows& x,
                     int M,
                     Range rows,
                     Dtype dtype,
                     void* y,
                     float* scratch) {
  float* sums = scratch + kPanelFloats;
  int32_t* panel = reinterpret_cast<int32_t*>(scratch);
  int size = dtype == Dtype::kFloat32 ? 4 : 2;
  for (int n = rows.begin; n < rows.end; n += kPanelRows<V>) {
    for (int i = 0; i < M * kPanelRows<V>; ++i) sums[i] = 0;
    for (int k = w.columns.begin; k < w.columns.end; k += kIntBlockK) {
      Range columns{k, smaller(k + kIntBlockK, w.columns.end)};
      with_integers(w.format, [&](auto form) {
        using Q = decltype(form);
        constexpr int kBits = Q::kBits;
        StripParams<V, Q, kPanelRows<V>> params(w, n, columns);
        ptrdiff_t ahead =
            bytes_of(columns.end < w.K ? kIntBlockK
                                       : kPanelRows<V> * w.K - columns.begin,
                     kBits);
        if (w.packed) {
          fill_panel_from_packed<V, kBits>(w, n, columns, panel);
        } else {
          fill_panel<V, kBits>(w, n, columns, ahead, panel);
        }
        for (int m = 0; m < M; m += V::kIntTileRows) {
          int tile_rows = smaller(M - m, V::kIntTileRows);
          with_int<V::kIntTileRows>(tile_rows, [&](auto count) {
            int_tile<V, Q, A, decltype(count)::value>(panel,
                                                      params,
                                                      w.format,
                                                      columns,
                                                      x,
                                                      m,
                                                      sums + m * kPanelRows<V>);
          });
        }
      });
    }
    for (int m = 0; m < M; ++m) {
      round_floats<V>(
          dtype,
          sums + m * kPanelRows<V>,
          smaller(rows.end - n, kPanelRows<V>),
          static_cast<uint8_t*>(y) + (static_cast<size_t>(m) * w.N + n) * size);
    }
  }
}

template <class V, class A>
void multiply_integers(const Weights& w,
                       const QuantizedRows& x,
                       int M,
                       Reading reading,
                       Range rows,
                       Dtype dtype,
                       void* y,
                       float* scratch) {
  if (w.packed && reading.as_packed) {
    return multiply_packed_integers<V, A>(w, x, M, rows, dtype, y, scratch);
  }
  bool fits = static_cast<size_t>(w.K) <= kPanelFloats;
  if (M > 1 || w.packed || !lie_in_bytes(w.format.bits) || !fits) {
    return multiply_panels<V, A>(w, x, M, rows, dtype, y, scratch);
  }
  with_integers(w.format, [&](auto form) {
    using Q = decltype(form);
    if constexpr (lie_in_bytes(Q::kBits)) {
      with_group<Q::kUnit>(w.format.group_size, [&](auto group) {
        multiply_row<V, Q, A, decltype(group)::value>(
            w, x, rows, dtype, y, scratch);
      });
    }
  });
}

// Panels are made once for all rows and hold scales and biases as floats
// already: 32 rows of 4096 x 4096 take 0.95 ms packed against 1.05, 128 take
// 3.4 against 3.2 (two cores of a Zen 5).
constexpr int kPackedIntegerRows = 32;

template <class V, class A>
constexpr IntegerKernels make_integer_kernels() {
  return {quantize_rows<V, A>, multiply_integers<V, A>, kPackedIntegerRows};
}

}  // namespace
}  // namespace nibble::cpu
