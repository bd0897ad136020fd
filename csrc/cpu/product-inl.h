// x @ w_hat^T.
//
// Lanes run over k. A tile of R weight rows x M activation rows keeps R * M
// sums in registers; each decoded vector meets M activations:
//
//            x[0]  x[1] .. x[M-1]
//     w[0]    +     +        +       each + a vector of partial sums over k,
//     ..      +     +        +       summed across at the end of a block of k
//     w[R-1]  +     +        +
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/product_packed-inl.h"
#include "csrc/cpu/unpack-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

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

// One block of k, decoding on the way: for few activation rows. The rows of the
// next tile are prefetched: these are more streams than hardware follows.
template <class V, class Q, int kR, int kM>
void decode_tile(const Weights& w,
                 int row,
                 Range columns,
                 const float* x,
                 size_t x_stride,
                 float* sums) {
  if constexpr (may_be_regular<V, Q>()) {
    if (are_regular<V, kR>(w, row, columns)) {
      return decode_tile<V, E4m3Codes<true>, kR, kM>(
          w, row, columns, x, x_stride, sums);
    }
  }
  constexpr int kLine = 64, kStep = Q::kBiased ? V::kLanes : Q::kUnit;
  GroupParams<V, Q, kR> params(w, row, columns);
  size_t stride = bytes_of(w.K, Q::kBits);
  const uint8_t* codes =
      w.codes + row * stride + bytes_of(columns.begin, Q::kBits);
  x += columns.begin;
  int group_size = w.format.group_size;
  int groups = (columns.end - columns.begin) / group_size;
  int group_bytes = static_cast<int>(bytes_of(group_size, Q::kBits));
  Tile<V, kR, kM> tile;
  for (int g = 0; g < groups; ++g) {
    typename V::template Group<Q> group[kR];
    bool begins_line = g * group_bytes % kLine < group_bytes;
#pragma GCC unroll 8
    for (int r = 0; r < kR; ++r) {
      group[r] = params.group(r, g);
      if (begins_line) prefetch(codes + (kR + r) * stride, group_bytes);
    }
    for (int k = 0; k < group_size; k += kStep) {
#pragma GCC unroll 4
      for (int i = 0; i < kStep; i += V::kLanes) {
        typename V::F decoded[kR];
#pragma GCC unroll 8
        for (int r = 0; r < kR; ++r) {
          decoded[r] = V::template decode<Q>(codes + r * stride, group[r]);
        }
        tile.multiply(decoded, x, x_stride);
        codes += bytes_of(V::kLanes, Q::kBits);
        x += V::kLanes;
      }
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

template <class V, class Q>
void multiply_few(const Weights& w,
                  const float* x,
                  size_t x_stride,
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
        decode_tile<V, Q, decltype(r)::value, kM>(w,
                                                  rows.begin + n,
                                                  columns,
                                                  x + m * x_stride,
                                                  x_stride,
                                                  sums + m * kBlockN + n);
      });
    });
    m += count;
  }
}

template <class V, class Q>
void multiply_many(const Weights& w,
                   const float* x,
                   size_t x_stride,
                   int M,
                   Range rows,
                   Range columns,
                   float* panel,
                   float* sums) {
  int count = rows.end - rows.begin;
  by_rows<4>(count, [&](auto r, int n) {
    decode_rows<V, Q, decltype(r)::value>(
        w, rows.begin + n, columns, panel + n * kBlockK, kBlockK);
  });
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto tile_rows) {
      by_rows<4>(count, [&](auto r, int n) {
        panel_tile<V, decltype(r)::value, decltype(tile_rows)::value>(
            panel + n * kBlockK,
            columns.end - columns.begin,
            x + m * x_stride + columns.begin,
            x_stride,
            sums + m * kBlockN + n);
      });
    });
  }
}

template <class V>
void multiply(const Weights& w,
              const float* x,
              int M,
              Reading reading,
              Range rows,
              Dtype dtype,
              void* y,
              float* scratch) {
  if (w.packed && reading.as_packed) {
    return multiply_packed<V>(w, x, M, rows, dtype, y, scratch);
  }
  float* sums = scratch + kPanelFloats;
  // A row of one block is read whole in any case.
  bool whole_rows = reading.whole_rows && w.K > kBlockK && !w.packed;
  int step = whole_rows ? V::decode_rows(M) : kBlockN;
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  for (int n = rows.begin; n < rows.end; n += step) {
    Range block{n, smaller(n + step, rows.end)};
    for (int m = 0; m < M; ++m) {
      for (int i = 0; i < step; ++i) sums[m * kBlockN + i] = 0;
    }
    for (int k = w.columns.begin; k < w.columns.end; k += kBlockK) {
      Range columns{k, smaller(k + kBlockK, w.columns.end)};
      auto add = [&](const Weights& w,
                     Range block,
                     Range columns,
                     const float* x,
                     size_t x_stride) {
        with_codes(w.format, [&](auto codes) {
          using Q = decltype(codes);
          if (reading.decode) {
            multiply_few<V, Q>(w, x, x_stride, M, block, columns, sums);
          } else {
            multiply_many<V, Q>(
                w, x, x_stride, M, block, columns, scratch, sums);
          }
        });
      };
      if (w.packed) {
        Weights part = unpacked_block<V>(w, block, columns, sums + kSumFloats);
        add(part, {0, part.N}, {0, part.K}, x + k, w.K);
      } else {
        add(w, block, columns, x, w.K);
      }
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

}  // namespace
}  // namespace nibble::cpu
