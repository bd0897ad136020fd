// The kernels, written once against a SIMD facade V and compiled once for each
// instruction set. Everything has internal linkage: code made for one
// instruction set must never be merged with another's.
#pragma once

#include "csrc/cpu/kernels.h"

namespace nibble::cpu {
namespace {

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

constexpr int smaller(int a, int b) {
  return a < b ? a : b;
}

// Calls fn with Int<bits>.
template <typename Fn>
void with_bits(int bits, Fn&& fn) {
  switch (bits) {
    case 2:
      return fn(Int<2>{});
    case 3:
      return fn(Int<3>{});
    case 4:
      return fn(Int<4>{});
    case 5:
      return fn(Int<5>{});
    case 6:
      return fn(Int<6>{});
    case 8:
      return fn(Int<8>{});
  }
}

template <Dtype kValue>
struct DtypeTag {
  static constexpr Dtype value = kValue;
};

// Calls fn with DtypeTag<dtype>.
template <typename Fn>
void with_dtype(Dtype dtype, Fn&& fn) {
  switch (dtype) {
    case Dtype::kFloat32:
      return fn(DtypeTag<Dtype::kFloat32>{});
    case Dtype::kFloat16:
      return fn(DtypeTag<Dtype::kFloat16>{});
    case Dtype::kBFloat16:
      return fn(DtypeTag<Dtype::kBFloat16>{});
  }
}

// Calls fn with Int<value>, for value in 1..kMax.
template <int kMax, typename Fn>
void with_int(int value, Fn&& fn) {
  if constexpr (kMax > 1) {
    if (value < kMax) {
      return with_int<kMax - 1>(value, fn);
    }
  }
  fn(Int<kMax>{});
}

// ---- 16-bit floats ------------------------------------------------------

template <class V, Dtype kDtype>
void to_floats(const uint8_t* p, int count, float* out) {
  constexpr int kSize = size_of(kDtype);
  int i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::store(out + i, V::template load_as_float<kDtype>(p + i * kSize));
  }
  if (i < count) {  // out has room for whole vectors
    V::store(out + i,
             V::template load_as_float<kDtype>(p + i * kSize, count - i));
  }
}

template <class V, Dtype kDtype>
void round_floats(const float* v, int count, uint8_t* out) {
  constexpr int kSize = size_of(kDtype);
  int i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::template store_rounded<kDtype>(out + i * kSize, V::load(v + i));
  }
  if (i < count) {  // v has room for whole vectors
    V::template store_rounded<kDtype>(
        out + i * kSize, V::load(v + i), count - i);
  }
}

template <class V>
void round_floats(Dtype dtype, const float* v, int count, uint8_t* out) {
  with_dtype(dtype, [&](auto d) {
    round_floats<V, decltype(d)::value>(v, count, out);
  });
}

// ---- weights ------------------------------------------------------------

// The scales and biases of kRows weight rows between two columns, as fp32.
template <class V, int kRows>
struct GroupParams {
  static constexpr int kMax = kBlockK / 32;
  alignas(64) float scale[kRows][kMax];
  alignas(64) float bias[kRows][kMax];

  GroupParams(const Weights& w, int row, Range columns) {
    with_dtype(w.scale_dtype, [&](auto dtype) {
      constexpr Dtype kDtype = decltype(dtype)::value;
      int group_size = w.format.group_size;
      int count = (columns.end - columns.begin) / group_size;
      size_t stride = size_t{size_of(kDtype)} * (w.K / group_size);
      size_t at =
          row * stride + size_t{size_of(kDtype)} * (columns.begin / group_size);
      for (int r = 0; r < kRows; ++r, at += stride) {
        to_floats<V, kDtype>(w.scales + at, count, scale[r]);
        to_floats<V, kDtype>(w.biases + at, count, bias[r]);
      }
    });
  }
};

inline size_t bytes_of(int codes, int bits) {
  return static_cast<size_t>(codes) * bits / 8;
}

// Calls tile(Int<R>, row) for all rows, R at a time and then one at a time.
template <int kR, typename Fn>
void by_rows(int count, Fn&& tile) {
  int r = 0;
  for (; r + kR <= count; r += kR) tile(Int<kR>{}, r);
  for (; r < count; ++r) tile(Int<1>{}, r);
}

// out[r, columns] = w_hat[row + r, columns] for r < kR, in code order; rows
// of `out` are out_stride apart.
template <class V, int kBits, int kR>
void decode_rows(
    const Weights& w, int row, Range columns, float* out, int out_stride) {
  GroupParams<V, kR> params(w, row, columns);
  size_t stride = bytes_of(w.K, kBits);
  const uint8_t* codes =
      w.codes + row * stride + bytes_of(columns.begin, kBits);
  int group_size = w.format.group_size;
  int groups = (columns.end - columns.begin) / group_size;
  for (int r = 0; r < kR; ++r, codes += stride, out += out_stride) {
    const uint8_t* p = codes;
    float* to = out;
    for (int g = 0; g < groups; ++g) {
      auto group =
          V::template group<kBits>(params.scale[r][g], params.bias[r][g]);
      for (int k = 0; k < group_size; k += 32) {
#pragma GCC unroll 8
        for (int i = 0; i < 32; i += V::kLanes) {
          V::store(to, V::template decode<kBits>(p, group));
          to += V::kLanes;
          p += bytes_of(V::kLanes, kBits);
        }
      }
    }
  }
}

// ---- x @ w_hat^T --------------------------------------------------------
// Lanes run over k. A tile of R weight rows x M activation rows keeps R * M
// sums in registers; each decoded vector meets M activations:
//
//            x[0]  x[1] .. x[M-1]
//     w[0]    +     +        +       each + a vector of partial sums over k,
//     ..      +     +        +       summed across at the end of a block of k
//     w[R-1]  +     +        +

template <class V, int kR, int kM>
struct Tile {
  typename V::F sum[kR][kM];

  Tile() {
    for (auto& row : sum) {
      for (auto& s : row) s = V::zero();
    }
  }

  // Adds the products of one vector of each weight row.
  void multiply(const typename V::F (&w)[kR], const float* x, size_t stride) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F v = V::load(x + m * stride);
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) sum[r][m] = V::fma(w[r], v, sum[r][m]);
    }
  }

  // sums[m, r] += this, rows of kBlockN.
  void add_to(float* sums) const {
    float four[4];
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
      for (int r = 0; r < kR; r += 4) {
        auto at = [&](int i) { return i < kR ? sum[i][m] : V::zero(); };
        V::sum4(at(r), at(r + 1), at(r + 2), at(r + 3), four);
        for (int i = r; i < smaller(r + 4, kR); ++i) {
          sums[m * kBlockN + i] += four[i - r];
        }
      }
    }
  }
};

// One block of k, decoding on the way: for few activation rows.
template <class V, int kBits, int kR, int kM>
void decode_tile(
    const Weights& w, int row, Range columns, const float* x, float* sums) {
  GroupParams<V, kR> params(w, row, columns);
  size_t stride = bytes_of(w.K, kBits);
  const uint8_t* codes =
      w.codes + row * stride + bytes_of(columns.begin, kBits);
  x += columns.begin;
  int group_size = w.format.group_size;
  int groups = (columns.end - columns.begin) / group_size;
  Tile<V, kR, kM> tile;
  for (int g = 0; g < groups; ++g) {
    typename V::template Group<kBits> group[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      group[r] =
          V::template group<kBits>(params.scale[r][g], params.bias[r][g]);
    }
    for (int k = 0; k < group_size; k += V::kLanes) {
      typename V::F decoded[kR];
#pragma GCC unroll 8
      for (int r = 0; r < kR; ++r) {
        decoded[r] = V::template decode<kBits>(codes + r * stride, group[r]);
      }
      tile.multiply(decoded, x, w.K);
      codes += bytes_of(V::kLanes, kBits);
      x += V::kLanes;
    }
  }
  tile.add_to(sums);
}

// One block of k from decoded rows, which are kBlockK apart.
template <class V, int kR, int kM>
void panel_tile(
    const float* panel, int count, const float* x, size_t stride, float* sums) {
  Tile<V, kR, kM> tile;
  for (int k = 0; k < count; k += V::kLanes) {
    typename V::F decoded[kR];
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) decoded[r] = V::load(panel + r * kBlockK + k);
    tile.multiply(decoded, x + k, stride);
  }
  tile.add_to(sums);
}

template <class V, int kBits>
void multiply_few(const Weights& w,
                  const float* x,
                  int M,
                  Range rows,
                  Range columns,
                  float* sums) {
  int tiles = (M + V::kTileRows - 1) / V::kTileRows;
  for (int m = 0; tiles > 0; --tiles) {
    int count = (M - m + tiles - 1) / tiles;
    with_int<V::kTileRows>(count, [&](auto tile_rows) {
      constexpr int kM = decltype(tile_rows)::value;
      constexpr int kR = V::decode_rows(kM);
      by_rows<kR>(rows.end - rows.begin, [&](auto r, int n) {
        decode_tile<V, kBits, decltype(r)::value, kM>(
            w,
            rows.begin + n,
            columns,
            x + static_cast<size_t>(m) * w.K,
            sums + m * kBlockN + n);
      });
    });
    m += count;
  }
}

template <class V, int kBits>
void multiply_many(const Weights& w,
                   const float* x,
                   int M,
                   Range rows,
                   Range columns,
                   float* panel,
                   float* sums) {
  int count = rows.end - rows.begin;
  by_rows<4>(count, [&](auto r, int n) {
    decode_rows<V, kBits, decltype(r)::value>(
        w, rows.begin + n, columns, panel + n * kBlockK, kBlockK);
  });
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto tile_rows) {
      by_rows<4>(count, [&](auto r, int n) {
        panel_tile<V, decltype(r)::value, decltype(tile_rows)::value>(
            panel + n * kBlockK,
            columns.end - columns.begin,
            x + static_cast<size_t>(m) * w.K + columns.begin,
            w.K,
            sums + m * kBlockN + n);
      });
    });
  }
}

template <class V>
void multiply(const Weights& w,
              const float* x,
              int M,
              Range rows,
              Dtype dtype,
              void* y,
              float* scratch) {
  float* sums = scratch + kPanelFloats;
  // While all of x stays in the first-level cache, rows are best read whole.
  bool whole_rows = w.K > kBlockK && M * w.K <= 8 * kBlockK;
  int step = whole_rows ? V::decode_rows(M) : kBlockN;
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  for (int n = rows.begin; n < rows.end; n += step) {
    Range block{n, smaller(n + step, rows.end)};
    for (int m = 0; m < M; ++m) {
      for (int i = 0; i < step; ++i) sums[m * kBlockN + i] = 0;
    }
    for (int k = 0; k < w.K; k += kBlockK) {
      Range columns{k, smaller(k + kBlockK, w.K)};
      with_bits(w.format.bits, [&](auto bits) {
        constexpr int kBits = decltype(bits)::value;
        if (M <= V::kFewRows) {
          multiply_few<V, kBits>(w, x, M, block, columns, sums);
        } else {
          multiply_many<V, kBits>(w, x, M, block, columns, scratch, sums);
        }
      });
    }
    for (int m = 0; m < M; ++m) {
      round_floats<V>(
          dtype,
          sums + m * kBlockN,
          block.end - block.begin,
          static_cast<uint8_t*>(y) + (static_cast<size_t>(m) * w.N + n) * size);
    }
  }
}

// ---- x @ w_hat ----------------------------------------------------------
// Lanes run over k again, which is now a dimension of y: weights are decoded
// in blocks, and a tile of kM rows x kV vectors of y stays in registers while
// n runs through the block.

template <class V, int kM, int kV>
void column_tile(
    const float* panel, int count, const float* x, size_t stride, float* sums) {
  typename V::F sum[kM][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sum[m][v] = V::load(sums + m * kColumnBlockK + v * V::kLanes);
    }
  }
  for (int n = 0; n < count; ++n) {
    typename V::F w[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      w[v] = V::load(panel + n * kColumnBlockK + v * V::kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F a = V::set1(x[m * stride + n]);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) sum[m][v] = V::fma(a, w[v], sum[m][v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      V::store(sums + m * kColumnBlockK + v * V::kLanes, sum[m][v]);
    }
  }
}

template <class V>
void add_block(const float* panel,
               int width,
               int count,
               const float* x,
               size_t stride,
               int M,
               float* sums) {
  constexpr int kWide = 4 * V::kLanes;
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto tile_rows) {
      constexpr int kM = decltype(tile_rows)::value;
      const float* rows = x + m * stride;
      float* out = sums + m * kColumnBlockK;
      int k = 0;
      for (; k + kWide <= width; k += kWide) {
        column_tile<V, kM, 4>(panel + k, count, rows, stride, out + k);
      }
      for (; k < width; k += V::kLanes) {
        column_tile<V, kM, 1>(panel + k, count, rows, stride, out + k);
      }
    });
  }
}

template <class V, int kBits>
void to_natural_order(float* v, int count) {
  if constexpr (!V::template kNatural<kBits>) {
    for (int i = 0; i < count; i += V::kLanes) {
      V::store(v + i, V::template to_natural_order<kBits>(V::load(v + i)));
    }
  }
}

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
  for (int k = columns.begin; k < columns.end; k += kColumnBlockK) {
    Range block{k, smaller(k + kColumnBlockK, columns.end)};
    int width = block.end - block.begin;
    for (int i = 0; i < M * kColumnBlockK; ++i) sums[i] = 0;
    with_bits(w.format.bits, [&](auto bits) {
      constexpr int kBits = decltype(bits)::value;
      for (int n = 0; n < w.N; n += kColumnBlockN) {
        int count = smaller(kColumnBlockN, w.N - n);
        by_rows<4>(count, [&](auto r, int i) {
          decode_rows<V, kBits, decltype(r)::value>(
              w, n + i, block, scratch + i * kColumnBlockK, kColumnBlockK);
        });
        add_block<V>(scratch, width, count, x + n, w.N, M, sums);
      }
      for (int m = 0; m < M; ++m) {
        float* row = sums + m * kColumnBlockK;
        to_natural_order<V, kBits>(row, width);
        round_floats<V>(dtype,
                        row,
                        width,
                        static_cast<uint8_t*>(y) +
                            (static_cast<size_t>(m) * w.K + k) * size);
      }
    });
  }
}

// ---- the rest -----------------------------------------------------------

template <class V>
void dequantize(const Weights& w, Range rows, Dtype dtype, void* out) {
  alignas(64) float row[kBlockK];
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  with_bits(w.format.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    for (int n = rows.begin; n < rows.end; ++n) {
      for (int k = 0; k < w.K; k += kBlockK) {
        Range columns{k, smaller(k + kBlockK, w.K)};
        int count = columns.end - columns.begin;
        decode_rows<V, kBits, 1>(w, n, columns, row, count);
        to_natural_order<V, kBits>(row, count);
        round_floats<V>(dtype,
                        row,
                        count,
                        static_cast<uint8_t*>(out) +
                            (static_cast<size_t>(n) * w.K + k) * size);
      }
    }
  });
}

template <class V>
void arrange(Dtype dtype, int bits, const void* x, size_t count, float* out) {
  const uint8_t* p = static_cast<const uint8_t*>(x);
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  alignas(64) float part[kBlockK];
  with_bits(bits, [&](auto b) {
    for (size_t i = 0; i < count; i += kBlockK) {
      int n = count - i < kBlockK ? static_cast<int>(count - i) : kBlockK;
      with_dtype(dtype, [&](auto d) {
        to_floats<V, decltype(d)::value>(p + i * size, n, part);
      });
      for (int k = 0; k < n; k += V::kLanes) {
        V::store(
            out + i + k,
            V::template to_code_order<decltype(b)::value>(V::load(part + k)));
      }
    }
  });
}

template <class V>
bool natural_order(int bits) {
  bool natural = true;
  with_bits(bits, [&](auto b) {
    natural = V::template kNatural<decltype(b)::value>;
  });
  return natural;
}

template <class V>
constexpr Kernels make_kernels() {
  return {arrange<V>,
          natural_order<V>,
          multiply<V>,
          multiply_columns<V>,
          dequantize<V>};
}

}  // namespace
}  // namespace nibble::cpu
