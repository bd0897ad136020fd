// x @ w_hat^T with activations rounded to 8 bits, group by group, and integer
// products.
//
// Lanes run over weight rows. A strip is as many rows as there are lanes; its
// words are transposed into a panel, so that a vector holds the same word of
// each row and meets 4 activations, the same for all lanes:
//
//     panel       lane 0       lane 1    ..
//     word 0    w[0, 0:4]    w[1, 0:4]        x  x[m, 0:4] in every lane
//     word 1    w[0, 4:8]    w[1, 4:8]        x  x[m, 4:8]
//
// Sums are integers inside a group and exact; groups are added up in fp32, one
// after the other, so that a result does not depend on the number of rows.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Codes of a panel: [256 words, 32 rows] of 4-bit codes are 16 KB and leave
// room in a first-level cache for activations.
constexpr int kIntBlockK = 1024;

// Bits of a code in the panel: those that fill bytes stay packed, the others
// get a byte each.
constexpr int panel_bits(int bits) {
  return bits == 2 || bits == 4 ? bits : 8;
}

// Where activation k of a run of 32 / panel_bits goes: the byte lanes of word
// shifted by part * bits hold codes part, part + parts, ...
constexpr int activation_place(int k, int parts) {
  return k % parts * 4 + k / parts;
}

template <class V, int kBits>
void reorder_activations(int8_t* codes, int count) {
  constexpr int kParts = 8 / panel_bits(kBits);
  if constexpr (kParts > 1) {
    constexpr int kRun = 4 * kParts;
    for (int i = 0; i < count; i += kRun) {
      int8_t run[kRun];
      for (int k = 0; k < kRun; ++k) {
        run[activation_place(k, kParts)] = codes[i + k];
      }
      for (int k = 0; k < kRun; ++k) codes[i + k] = run[k];
    }
  }
}

// codes[0:count] = the activations of a group over scale, rounded to -127..127.
// Returns scale = max|x| / 127, at least 2^-126.
template <class V>
float quantize_group(const float* x, int count, int8_t* codes) {
  typename V::I best = V::int_zero();
  for (int k = 0; k < count; k += V::kLanes) {
    best = V::max_magnitude(best, V::load(x + k));
  }
  int32_t lanes[V::kLanes], most = 0;
  V::int_store(lanes, best);
  for (int32_t lane : lanes) most = lane > most ? lane : most;
  float magnitude;
  __builtin_memcpy(&magnitude, &most, sizeof(magnitude));
  // Below, the inverse would overflow. Infinities and NaN reach the scale.
  constexpr float kLeast = 0x1p-126f;
  float scale = magnitude / 127.0f;
  if (scale < kLeast) scale = kLeast;
  typename V::F factor = V::set1(1.0f / scale);
  for (int k = 0; k < count; k += V::kLanes) {
    V::round_to_bytes(V::mul(V::load(x + k), factor), codes + k);
  }
  return scale;
}

template <class V>
void quantize_rows(Dtype dtype,
                   QuantFormat format,
                   const void* x,
                   int rows,
                   int K,
                   const QuantizedRows& out) {
  alignas(64) float group[128];
  int size = dtype == Dtype::kFloat32 ? 4 : 2;
  const uint8_t* p = static_cast<const uint8_t*>(x);
  size_t groups = static_cast<size_t>(rows) * (K / format.group_size);
  for (size_t g = 0; g < groups; ++g) {
    int8_t* codes = out.codes + g * format.group_size;
    with_dtype(dtype, [&](auto d) {
      to_floats<V, decltype(d)::value>(p, format.group_size, group);
    });
    float scale = quantize_group<V>(group, format.group_size, codes);
    int sum = 0;
    for (int k = 0; k < format.group_size; ++k) sum += codes[k];
    out.scales[g] = scale;
    out.sums[g] = scale * static_cast<float>(sum);
    p += static_cast<size_t>(format.group_size) * size;
    with_bits(format.bits, [&](auto bits) {
      reorder_activations<V, decltype(bits)::value>(codes, format.group_size);
    });
  }
}

// ---- panels -------------------------------------------------------------

template <class V>
constexpr int kPanelRows = V::kStrips * V::kLanes;

template <int kBits>
constexpr int words_of(int codes) {
  return codes * panel_bits(kBits) / 32;
}

// The row at lane r of a strip; beyond the last row the last again, whose
// results are not stored.
inline int strip_row(const Weights& w, int row) {
  return smaller(row, w.N - 1);
}

// panel [words, kPanelRows] = the words of rows from `row` on. `ahead` bytes
// from here is what will be wanted next: so many streams, each short, are more
// than the hardware's prefetchers follow.
template <class V, int kBits>
void fill_panel(
    const Weights& w, int row, Range columns, ptrdiff_t ahead, int32_t* panel) {
  constexpr int kStride = kPanelRows<V>;
  int words = words_of<kBits>(columns.end - columns.begin);
  for (int strip = 0; strip < kStride; strip += V::kLanes) {
    constexpr bool kSpread = panel_bits(kBits) != kBits;
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
          V::template spread8<kBits>(eight, bytes[r] + k);
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

// The scales and biases of the panel's rows, [groups, kPanelRows].
template <class V>
struct PanelParams {
  static constexpr int kMax = kIntBlockK / 32;
  alignas(64) float scale[kMax][kPanelRows<V>];
  alignas(64) float bias[kMax][kPanelRows<V>];

  PanelParams(const Weights& w, int row, Range columns) {
    int groups = (columns.end - columns.begin) / w.format.group_size;
    for (int strip = 0; strip < kPanelRows<V>; strip += V::kLanes) {
      alignas(64) float rows[2][V::kLanes][kMax];
      with_dtype(w.scale_dtype, [&](auto dtype) {
        for (int r = 0; r < V::kLanes; ++r) {
          read_params<V, decltype(dtype)::value>(w,
                                                 strip_row(w, row + strip + r),
                                                 columns,
                                                 rows[0][r],
                                                 rows[1][r]);
        }
      });
      spread(rows[0], groups, &scale[0][strip]);
      spread(rows[1], groups, &bias[0][strip]);
    }
  }

 private:
  static void spread(const float (&from)[V::kLanes][kMax],
                     int groups,
                     float* to) {
    const uint8_t* rows[V::kLanes];
    for (int g = 0; g < groups; g += V::kLanes) {
      for (int r = 0; r < V::kLanes; ++r) {
        rows[r] = reinterpret_cast<const uint8_t*>(from[r] + g);
      }
      V::transpose(rows,
                   smaller(groups - g, V::kLanes),
                   reinterpret_cast<int32_t*>(to + g * kPanelRows<V>),
                   kPanelRows<V>);
    }
  }
};

// ---- products -----------------------------------------------------------

// Adds the words of one vector for each strip to sums [strips, kM].
template <class V, int kBits, int kM, int kPart>
void add_part(const typename V::I (&words)[V::kStrips],
              const int8_t* x,
              size_t stride,
              typename V::I (&sums)[V::kStrips][kM]) {
  constexpr int kStored = panel_bits(kBits);
  typename V::I codes[V::kStrips];
#pragma GCC unroll 4
  for (int s = 0; s < V::kStrips; ++s) {
    codes[s] = V::template byte_codes<kStored, kPart>(words[s]);
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    typename V::I a = V::broadcast4(x + m * stride + 4 * kPart);
#pragma GCC unroll 4
    for (int s = 0; s < V::kStrips; ++s) {
      sums[s][m] = V::template dot4<kBits>(sums[s][m], codes[s], a);
    }
  }
  if constexpr ((kPart + 1) * kStored < 8) {
    add_part<V, kBits, kM, kPart + 1>(words, x, stride, sums);
  }
}

// sums [kM, kPanelRows] += the products of a panel and kM activation rows.
template <class V, int kBits, int kM>
void int_tile(const int32_t* panel,
              const PanelParams<V>& params,
              QuantFormat format,
              int K,
              Range columns,
              const QuantizedRows& x,
              int m,
              float* sums) {
  constexpr int kParts = 8 / panel_bits(kBits);
  int groups = K / format.group_size;
  int first = columns.begin / format.group_size;
  int count = (columns.end - columns.begin) / format.group_size;
  const int8_t* codes = x.codes + static_cast<size_t>(m) * K + columns.begin;
  const float* x_scales = x.scales + static_cast<size_t>(m) * groups + first;
  const float* x_sums = x.sums + static_cast<size_t>(m) * groups + first;
  for (int g = 0; g < count; ++g) {
    typename V::I dots[V::kStrips][kM];
    for (auto& strip : dots) {
      for (auto& dot : strip) dot = V::int_zero();
    }
    for (int d = 0; d < words_of<kBits>(format.group_size); ++d) {
      typename V::I words[V::kStrips];
#pragma GCC unroll 4
      for (int s = 0; s < V::kStrips; ++s) {
        words[s] = V::int_load(panel + s * V::kLanes);
      }
      add_part<V, kBits, kM, 0>(words, codes, K, dots);
      panel += kPanelRows<V>;
      codes += 4 * kParts;
    }
#pragma GCC unroll 4
    for (int s = 0; s < V::kStrips; ++s) {
      typename V::F scale = V::load(params.scale[g] + s * V::kLanes);
      typename V::F bias = V::load(params.bias[g] + s * V::kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        float* to = sums + m * kPanelRows<V> + s * V::kLanes;
        typename V::F product =
            V::mul(V::to_float(dots[s][m]), V::set1(x_scales[m * groups + g]));
        typename V::F sum = V::fma(product, scale, V::load(to));
        V::store(to, V::fma(bias, V::set1(x_sums[m * groups + g]), sum));
      }
    }
  }
}

template <class V>
void multiply_int8(const Weights& w,
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
    for (int k = 0; k < w.K; k += kIntBlockK) {
      Range columns{k, smaller(k + kIntBlockK, w.K)};
      PanelParams<V> params(w, n, columns);
      with_bits(w.format.bits, [&](auto b) {
        constexpr int kBits = decltype(b)::value;
        ptrdiff_t ahead =
            bytes_of(columns.end < w.K ? kIntBlockK
                                       : kPanelRows<V> * w.K - columns.begin,
                     kBits);
        fill_panel<V, kBits>(w, n, columns, ahead, panel);
        for (int m = 0; m < M; m += V::kIntTileRows) {
          int tile_rows = smaller(M - m, V::kIntTileRows);
          with_int<V::kIntTileRows>(tile_rows, [&](auto count) {
            int_tile<V, kBits, decltype(count)::value>(
                panel,
                params,
                w.format,
                w.K,
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

template <class V>
constexpr Int8Kernels make_int8_kernels() {
  return {quantize_rows<V>, multiply_int8<V>};
}

}  // namespace
}  // namespace nibble::cpu
