// x @ w_hat^T in tiles of bfloat16. Codes that are floats are exact in one
// bfloat16 with their scale. Those that are integers become one or the sum of
// two with their scale and bias. So a tile adds up all of K: a group needs no
// work of its own.
//
// Numbers of x are a sum of one or two bfloat16, too. A row of x is scaled by a
// power of two, so that its largest number is near 1: sums do not overflow, and
// only those far below the largest become subnormal, which tiles take for zero.
// If both have two, the products of the second ones are left out.
//
// A block is 32 weight rows, two right tiles. While a panel of its columns is
// multiplied with the first rows of x, the next panel is decoded: decoding and
// tiles use different units. Sums have one order, whatever the rows of x.
#pragma once

#include "csrc/cpu/bfloat_affine-inl.h"
#include "csrc/cpu/bfloat_source-inl.h"
#include "csrc/cpu/bfloat_split-inl.h"
#include "csrc/cpu/integers_tiles-inl.h"

namespace nibble::cpu {
namespace {

// Rows of x in tiles.
struct LeftTiles {
  const uint8_t* rows;
  size_t run_bytes, plane_bytes;  // from one run or plane to the next
  int count, tile_rows;

  // The sums of a block.
  int sums() const { return count * tile_rows * kBfloatRows; }
};

// Blocks of kBfloatRows weight rows, and all of their columns. A unit is a
// panel of a block. The blocks take turns, so that the columns of many rows of
// x stay in a second-level cache.
template <class V, class Sources, int kPlanes>
class BfloatBlocks {
 public:
  BfloatBlocks(const Weights& w, int row, int count, float* scratch)
      : w_(w),
        count_(count),
        memory_(scratch),
        sources_(w, row, count, scratch) {}

  // sums [block, rows, kBfloatRows] = the products. Returns the number of
  // blocks before the first that bfloat16 cannot express.
  int multiply(const LeftTiles& x, float* sums) {
    int width = w_.columns.end - w_.columns.begin;
    int panels = (width + kBfloatColumns - 1) / kBfloatColumns;
    int units = panels * count_;
    bool keeps = x.count <= 2 && count_ == 1;
    source_ = sources_.open(0, columns(0));
    bool fits = true;
    for (int i = 0; i < pieces(0); ++i) fits &= source_.decode(i, panel(0));
    keep(0, fits);
    for (int u = 0; u < units; ++u) {
      if (u + 1 < units) {
        source_ = sources_.open((u + 1) % count_, columns(u + 1));
      }
      float* to = sums + u % count_ * x.sums();
      for (int tile = 0; tile < x.count; tile += 2) {
        Pass pass{u, tile, u < count_, !keeps, !keeps || u + 1 == units};
        bool decodes = u + 1 < units;
        auto run = [&](auto lefts) {
          constexpr int kLefts = decltype(lefts)::value;
          if constexpr (Sources::kApart) {
            decodes ? add_apart<kLefts, true>(x, pass, to)
                    : add_apart<kLefts, false>(x, pass, to);
          } else {
            decodes ? add<kLefts, true>(x, pass, to)
                    : add<kLefts, false>(x, pass, to);
          }
        };
        tile + 1 < x.count ? run(Int<2>{}) : run(Int<1>{});
      }
    }
    return unfit_ ? __builtin_ctz(unfit_) : count_;
  }

 private:
  // The products of a unit and one or two left tiles. Sums stay in registers
  // unless others take them.
  struct Pass {
    int unit, tile;
    bool first, loads, stores;
  };

  void keep(int block, bool fits) { unfit_ |= uint32_t{!fits} << block; }
  int32_t* panel(int u) const {
    return reinterpret_cast<int32_t*>(memory_) +
           u % 2 * kPanelWords<Sources::kPlanes>;
  }
  Range columns(int u) const {
    int begin = w_.columns.begin + u / count_ * kBfloatColumns;
    return {begin, smaller(begin + kBfloatColumns, w_.columns.end)};
  }
  int steps(int u) const {
    Range c = columns(u);
    return (c.end - c.begin + kBfloatRun - 1) / kBfloatRun;
  }
  int pieces(int u) const { return steps(u) * Sources::Source::kPieces; }

  template <int kLefts, bool kDecodes>
  [[gnu::always_inline]] inline void add(const LeftTiles& x,
                                         Pass pass,
                                         float* sums) {
    constexpr size_t kSumBytes = kBfloatRows * sizeof(float);
    constexpr size_t kRowBytes = kBfloatRun * sizeof(uint16_t);
    size_t tile_bytes = x.tile_rows * kRowBytes;
    sums += size_t(pass.tile) * x.tile_rows * kBfloatRows;
    V::in_order();
    each_tile<kLefts>([&](auto left,
                          auto right) __attribute__((always_inline)) {
      constexpr int kLeft = decltype(left)::value;
      constexpr int kRight = decltype(right)::value;
      float* p = sums + kLeft * x.tile_rows * kBfloatRows + kRight * V::kLanes;
      if (pass.first) {
        V::template clear_tile<kLeft, kRight>();
      } else if (pass.loads) {
        V::template load_sums<kLeft, kRight>(p, kSumBytes);
      }
    });
    int count = steps(pass.unit);
    // Each pass decodes an equal part of the next panel, between its steps.
    int piece = 0, last = 0, each = 0;
    if constexpr (kDecodes) {
      int passes = (x.count + 1) / 2, all = pieces(pass.unit + 1);
      piece = all * (pass.tile / 2) / passes;
      last = all * (pass.tile / 2 + 1) / passes;
      each = (last - piece + count - 1) / count;
    }
    const int32_t* right = panel(pass.unit);
    int32_t* decoded = panel(pass.unit + 1);
    size_t run_bytes = x.run_bytes, plane_bytes = x.plane_bytes;
    const uint8_t* rows = x.rows +
                          columns(pass.unit).begin / kBfloatRun * run_bytes +
                          pass.tile * tile_bytes;
    const typename Sources::Source from = source_;
    bool fits = true;
    for (const int32_t* end = right + count * kStepWords; right != end;
         right += kStepWords, rows += run_bytes) {
      V::template load_right<0>(right);
      V::template load_right<1>(right + kRightWords);
      if constexpr (kPlanes == 2) {
        multiply<kLefts>(rows + plane_bytes, tile_bytes);
      }
      multiply<kLefts>(rows, tile_bytes);
      if constexpr (Sources::kPlanes == 2) {
        V::template load_right<0>(right + kPlaneWords);
        V::template load_right<1>(right + kPlaneWords + kRightWords);
        each_tile<kLefts>(
            [&](auto left, auto right) __attribute__((always_inline)) {
              V::template add_bfloats<decltype(left)::value,
                                      decltype(right)::value>();
            });
      }
      if constexpr (kDecodes) {
        for (int end = smaller(piece + each, last); piece < end; ++piece) {
          fits &= from.decode(piece, decoded);
        }
      }
    }
    if constexpr (kDecodes) keep((pass.unit + 1) % count_, fits);
    each_tile<kLefts>([&](auto left,
                          auto right) __attribute__((always_inline)) {
      constexpr int kLeft = decltype(left)::value;
      constexpr int kRight = decltype(right)::value;
      float* p = sums + kLeft * x.tile_rows * kBfloatRows + kRight * V::kLanes;
      if (pass.stores) V::template store_tile<kLeft, kRight>(p, kSumBytes);
    });
    V::in_order();
  }

  // Not inlined: with more to keep in registers, GCC moves addresses to vector
  // registers, and tiles wait for the port that brings them back.
  template <int kLefts, bool kDecodes>
  [[gnu::noinline]] void add_apart(const LeftTiles& x, Pass pass, float* sums) {
    add<kLefts, kDecodes>(x, pass, sums);
  }

  // sums += the products of left tiles and the right ones in registers.
  template <int kLefts>
  [[gnu::always_inline]] static inline void multiply(const uint8_t* rows,
                                                     size_t tile_bytes) {
    constexpr size_t kRowBytes = kBfloatRun * sizeof(uint16_t);
    each_tile<kLefts>(
        [&](auto left, auto right) __attribute__((always_inline)) {
          constexpr int kLeft = decltype(left)::value;
          constexpr int kRight = decltype(right)::value;
          if constexpr (kRight == 0) {
            V::template load_left<kLeft>(rows + kLeft * tile_bytes, kRowBytes);
          }
          V::template add_bfloats<kLeft, kRight>();
        });
  }

  const Weights& w_;
  int count_;
  float* memory_;
  Sources sources_;
  typename Sources::Source source_{};  // of the unit that is decoded
  uint32_t unfit_ = 0;                 // a bit for each block
};

// Calls fn with the type of a format's sources. Codes that are integers have
// kWeightPlanes, those that are floats one.
template <class V, int kWeightPlanes, typename Fn>
void with_sources(const Weights& w, Fn&& fn) {
  if (!w.format.has_float_codes()) {
    return with_order(w.format, [&](auto bits) {
      fn(Type<AffineSources<V, decltype(bits)::value, kWeightPlanes>>{});
    });
  }
  with_tiles(w.format, [&](auto form) {
    using T = decltype(form);
    w.packed ? fn(Type<PanelSources<V, T, true>>{})
             : fn(Type<PanelSources<V, T, false>>{});
  });
}

// y[m, columns] = the sums [blocks, rows, kBfloatRows], rounded: row by row,
// for each may be in a page of its own.
template <class V>
void round_sums(const QuantizedRows& x,
                int M,
                const LeftTiles& left,
                const float* sums,
                Dtype dtype,
                int N,
                Range columns,
                void* y) {
  for (int m = 0; m < M; ++m) {
    const float* from = sums + m * kBfloatRows;
    size_t at = static_cast<size_t>(m) * N;
    for (int n = columns.begin; n < columns.end; n += kBfloatRows) {
      alignas(64) float row[kBfloatRows];
      for (int i = 0; i < kBfloatRows; i += V::kLanes) {
        V::store(row + i, V::mul(V::load(from + i), V::set1(x.scales[m])));
      }
      round_floats<V>(dtype,
                      row,
                      smaller(columns.end - n, kBfloatRows),
                      static_cast<uint8_t*>(y) + (at + n) * size_of(dtype));
      from += left.sums();
    }
  }
}

// As BfloatKernels::multiply.
template <class V, int kPlanes, int kWeightPlanes>
int multiply_bfloats(const Weights& w,
                     const QuantizedRows& x,
                     int M,
                     Range rows,
                     Dtype dtype,
                     void* y,
                     float* scratch) {
  static_assert(kBfloatRows == kPanelRows<V>);
  float* sums = scratch + kPanelFloats;
  int tiles = (M + kTileSides - 1) / kTileSides;
  int tile_rows = (M + tiles - 1) / tiles;
  size_t plane_bytes = size_t(x.rows) * kBfloatRun * sizeof(uint16_t);
  LeftTiles left{static_cast<const uint8_t*>(x.codes),
                 kPlanes * plane_bytes,
                 plane_bytes,
                 tiles,
                 tile_rows};
  // Two tiles keep their sums in registers.
  int most = tiles <= 2 ? 1 : smaller(kMostBlocks, kSumFloats / left.sums());
  typename V::Tiles configured(tile_rows, kTileDepth);
  for (int n = rows.begin, fit = 0, blocks; n < rows.end;
       n += blocks * kBfloatRows) {
    blocks = smaller(most, (rows.end - n + kBfloatRows - 1) / kBfloatRows);
    with_sources<V, kWeightPlanes>(w, [&](auto sources) {
      using Sources = typename decltype(sources)::Of;
      fit = BfloatBlocks<V, Sources, kPlanes>(w, n, blocks, scratch)
                .multiply(left, sums);
    });
    int end = smaller(n + fit * kBfloatRows, rows.end);
    round_sums<V>(x, M, left, sums, dtype, w.N, Range{n, end}, y);
    if (fit < blocks) return n + fit * kBfloatRows;
  }
  return rows.end;
}

template <class V, int kPlanes, int kWeightPlanes>
constexpr BfloatKernels make_bfloat_kernels() {
  return {split_rows<V, kPlanes>,
          multiply_bfloats<V, kPlanes, kWeightPlanes>,
          kPlanes};
}

}  // namespace
}  // namespace nibble::cpu
