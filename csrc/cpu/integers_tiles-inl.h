// x @ w_hat^T with integer activations in two-dimensional registers. A left
// tile has up to 16 rows of x, or both planes of 8, a right tile 16 weight
// rows, and both up to 64 places of k. A panel holds right tiles, whose rows
// are the parts of a word:
//
//     row 0     w[0, 0:8:2]   w[1, 0:8:2]  ..  w[15, 0:8:2]     4 bytes a lane
//     row 1     w[0, 1:8:2]   ..                                (4 bits)
//
// A tile of sums has those of one group. They are integers and become floats as
// all others, so results have the bits of integers-inl.h.
#pragma once

#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/integers_next-inl.h"

namespace nibble::cpu {
namespace {

constexpr int kTileSides = 16;
constexpr int kTileDepth = 64;
constexpr int kTileWords = kTileSides * 16;
// Columns in a panel of tiles: 8 KB, which stay in a first-level cache with
// what the other operands need.
constexpr int kTileColumns = 256;

// panel [parts, lanes] = the parts of a word of each lane, as bytes.
template <class V, class Q, int kPart = 0>
[[gnu::always_inline]] inline void put_parts(typename V::I word,
                                             int32_t* panel) {
  V::int_store(panel + kPart * V::kLanes, part_of<V, Q, int8_t, kPart>(word));
  if constexpr (kPart + 1 < kParts<int8_t, Q::kBits>) {
    put_parts<V, Q, kPart + 1>(word, panel);
  }
}

// panel [2, columns / 4, lanes] = the codes of two strips of weight rows as
// bytes. `words` has room for them as in fill_panel.
template <class V, class Q>
void fill_tiles(
    const Weights& w, int row, Range columns, int32_t* words, int32_t* panel) {
  constexpr int kEach = kParts<int8_t, Q::kBits>;
  int group_words = words_of<Q::kBits>(w.format.group_size);
  int groups = (columns.end - columns.begin) / w.format.group_size;
  const uint8_t* strips[2];
  constexpr size_t kWordBytes = 4 * kPanelRows<V>;
  size_t group_bytes;
  if (w.packed) {
    group_bytes =
        V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
    for (int s = 0; s < 2; ++s) {
      strips[s] = packed_strip<V>(w, row + s * V::kLanes, columns.begin);
    }
  } else {
    ptrdiff_t ahead = bytes_of(
        columns.end < w.K ? kTileColumns : kPanelRows<V> * w.K - columns.begin,
        Q::kBits);
    fill_panel<V, Q::kBits>(w, row, columns, ahead, words);
    group_bytes = kWordBytes * group_words;
    for (int s = 0; s < 2; ++s) {
      strips[s] = reinterpret_cast<const uint8_t*>(words + s * V::kLanes);
    }
  }
  for (const uint8_t* strip : strips) {
    for (int g = 0; g < groups; ++g) {
      const uint8_t* p = strip + g * group_bytes;
      auto put = [&](typename V::I word) __attribute__((always_inline)) {
        put_parts<V, Q>(word, panel);
        panel += kEach * V::kLanes;
      };
      if (w.packed) {
        by_packed_words<V, Q::kBits>(p, w.format.group_size, put);
        continue;
      }
      for (int d = 0; d < group_words; ++d, p += kWordBytes) {
        put(V::int_load(reinterpret_cast<const int32_t*>(p)));
      }
    }
  }
}

// The rows of x in a left tile, whose rows are their planes.
template <class A>
constexpr int kTileRows = kTileSides / kPlanes<A>;

// A pass over M rows of x: one tile or two of `rows` rows, from number `tile`
// on. All tiles are whole, so the last begins early.
struct TilePass {
  int tile, rows, M;

  int first(int i) const { return smaller((tile + i) * rows, M - rows); }
  // The first row that has no sums yet.
  int next(int i) const { return (tile + i) * rows; }
};

// Calls fn(Int<left>, Int<right>) for each tile of sums.
template <int kLefts, typename Fn>
[[gnu::always_inline]] inline void each_tile(Fn&& fn) {
  fn(Int<0>{}, Int<0>{});
  fn(Int<0>{}, Int<1>{});
  if constexpr (kLefts == 2) {
    fn(Int<1>{}, Int<0>{});
    fn(Int<1>{}, Int<1>{});
  }
}

// The products of a panel, kTileColumns of k, and the rows of a pass. Tile
// [left, right] of sums has the rows of a left tile and a strip of weights.
template <class V, class Q, class A>
class TileProduct {
 public:
  TileProduct(const Weights& w,
              const QuantizedRows& x,
              Range columns,
              const int32_t* panel,
              const StripParams<V, Q, kPanelRows<V>>& params,
              const NextTiles<V>& next)
      : x_(x),
        params_(params),
        next_(next),
        panel_(panel),
        column_(columns.begin),
        count_(columns.end - columns.begin),
        group_size_(w.format.group_size) {}

  // sums [M, kPanelRows] += the products. A tile of a group is multiplied while
  // the tile of the group before becomes floats: each waits for memory and
  // latencies that the other does not have.
  template <int kLefts>
  void add(TilePass pass, float* sums) const {
    alignas(64) int32_t dots[2][kLefts * 2 * kTileWords];
    int groups = count_ / group_size_;
    for (int g = 0; g <= groups; ++g) {
      int32_t* next = dots[g % 2];
      const int32_t* last = dots[(g + 1) % 2];
      each_tile<kLefts>(
          [&](auto left, auto right) __attribute__((always_inline)) {
            constexpr int kLeft = decltype(left)::value;
            constexpr int kRight = decltype(right)::value;
            if (g < groups) multiply<kLeft, kRight>(pass, g);
            if (kLeft == 0 && pass.tile == 0) next_.fetch(kRight, g);
            if (g > 0) add_floats<kLeft, kRight>(pass, g - 1, last, sums);
            if (g < groups) store<kLeft, kRight>(next);
          });
    }
  }

 private:
  template <int kLeft, int kRight>
  [[gnu::always_inline]] inline void multiply(TilePass pass, int g) const {
    V::in_order();
    V::template clear_tile<kLeft, kRight>();
    for (int k = 0; k < group_size_; k += kTileDepth) {
      int column = g * group_size_ + k;
      // Tiles of a group that is one tile deep stay for the next products.
      bool deep = group_size_ > kTileDepth;
      if (kRight == 0 || deep) {
        V::template load_left<kLeft>(
            x_.at<A>(pass.first(kLeft), column_ + column),
            QuantizedRows::kStride<A> / kPlanes<A>);
      }
      if (kLeft == 0 || deep) {
        V::template load_right<kRight>(panel_ + (kRight * count_ + column) *
                                                    (V::kLanes / 4));
      }
      V::template add_tile<kLeft, kRight>();
    }
  }

  template <int kLeft, int kRight>
  [[gnu::always_inline]] inline void store(int32_t* dots) const {
    V::template store_tile<kLeft, kRight>(
        dots + (2 * kLeft + kRight) * kTileWords, 4 * V::kLanes);
    V::in_order();
  }

  template <int kLeft, int kRight>
  [[gnu::always_inline]] inline void add_floats(TilePass pass,
                                                int g,
                                                const int32_t* dots,
                                                float* sums) const {
    int first = pass.first(kLeft);
    int begin = pass.next(kLeft) - first;
    size_t at = x_.group(first, column_ / group_size_ + g);
    const float *x_scales = x_.scales + at, *x_sums = x_.sums + at;
    typename V::F scale = V::load(params_.scale[g] + kRight * V::kLanes);
    typename V::F bias = params_.biases(g, kRight * V::kLanes);
    dots += (2 * kLeft + kRight) * kTileWords;
    sums += size_t(first) * kPanelRows<V> + kRight * V::kLanes;
    for (int r = begin; r < pass.rows; ++r) {
      float* to = sums + r * kPanelRows<V>;
      const int32_t* from = dots + r * kPlanes<A> * V::kLanes;
      typename V::I dot = join<V, A>(
          V::int_load(from), V::int_load(from + (kPlanes<A> - 1) * V::kLanes));
      V::store(
          to,
          add_group<V, Q>(
              dot, scale, bias, V::set1(x_scales[r]), x_sums + r, V::load(to)));
    }
  }

  const QuantizedRows& x_;
  const StripParams<V, Q, kPanelRows<V>>& params_;
  const NextTiles<V>& next_;
  const int32_t* panel_;
  int column_, count_, group_size_;
};

// As multiply_panels.
template <class V, class A>
void multiply_tiles(const Weights& w,
                    const QuantizedRows& x,
                    int M,
                    Range rows,
                    Dtype dtype,
                    void* y,
                    float* scratch) {
  static_assert(kPanelRows<V> == 2 * V::kLanes);
  float* sums = scratch + kPanelFloats;
  int32_t* words = reinterpret_cast<int32_t*>(scratch);
  int32_t* panel = words + kPanelRows<V> * kTileColumns / 4;
  int size = dtype == Dtype::kFloat32 ? 4 : 2;
  int tiles = (M + kTileRows<A> - 1) / kTileRows<A>;
  int tile_rows = (M + tiles - 1) / tiles;
  typename V::Tiles configured(tile_rows * kPlanes<A>,
                               smaller(w.format.group_size, kTileDepth));
  for (int n = rows.begin; n < rows.end; n += kPanelRows<V>) {
    for (int i = 0; i < M * kPanelRows<V>; ++i) sums[i] = 0;
    for (int k = w.columns.begin; k < w.columns.end; k += kTileColumns) {
      Range columns{k, smaller(k + kTileColumns, w.columns.end)};
      with_integers(w.format, [&](auto form) {
        using Q = decltype(form);
        StripParams<V, Q, kPanelRows<V>> params(w, n, columns);
        fill_tiles<V, Q>(w, n, columns, words, panel);
        NextTiles<V> next(w, n, columns);
        TileProduct<V, Q, A> product(w, x, columns, panel, params, next);
        for (int tile = 0; tile < tiles; tile += 2) {
          TilePass pass{tile, tile_rows, M};
          if (tile + 1 < tiles) {
            product.template add<2>(pass, sums);
          } else {
            product.template add<1>(pass, sums);
          }
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

// Up to this number of rows, vectors are faster. 256 x 4096, 4 bits, one thread
// of a Xeon, in us: 6 rows of int8 26 against 30 in tiles, 7 rows 36 against
// 31; 3 rows of int16 25 against 28, 4 rows 31 against 30, 5 rows 40 against
// 32. Vectors also wait less for memory.
template <class A>
constexpr int kFewTileRows = kPlanes<A> == 2 ? 4 : 6;

template <class V, class A>
void multiply_by_tiles(const Weights& w,
                       const QuantizedRows& x,
                       int M,
                       Reading reading,
                       Range rows,
                       Dtype dtype,
                       void* y,
                       float* scratch) {
  if (M <= kFewTileRows<A>) {
    return multiply_integers<V, A>(w, x, M, reading, rows, dtype, y, scratch);
  }
  multiply_tiles<V, A>(w, x, M, rows, dtype, y, scratch);
}

template <class V, class A>
constexpr IntegerKernels make_tile_kernels() {
  return {quantize_rows<V, A>, multiply_by_tiles<V, A>, kFewTileRows<A>};
}

}  // namespace
}  // namespace nibble::cpu
