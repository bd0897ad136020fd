// x @ w_hat^T for codes that are floats, in tiles of bfloat16. A weight is
// exact in bfloat16 with its scale, so a tile adds up all of K: a group needs
// no work of its own.
//
// x is a sum of one or two planes of bfloat16, and each plane is a row of a
// left tile. A row of x is scaled by a power of two, so that its largest number
// is near 1: sums do not overflow, and only those far below the largest become
// subnormal, which tiles take for zero.
//
// A block is 32 weight rows, two right tiles. While a panel of its columns is
// multiplied with the first rows of x, the next panel is decoded: decoding and
// tiles use different units. Sums have one order, whatever the rows of x.
#pragma once

#include "csrc/cpu/floats_source-inl.h"
#include "csrc/cpu/floats_split-inl.h"
#include "csrc/cpu/integers_tiles-inl.h"

namespace nibble::cpu {
namespace {

// Rows of x in tiles.
struct LeftTiles {
  const uint8_t* rows;
  size_t run_bytes;  // from one run to the next
  int count, tile_rows;

  // The sums of a block.
  int sums() const { return count * tile_rows * kBfloatRows; }
};

// Blocks of kBfloatRows weight rows, and all of their columns. A unit is a
// panel of a block. The blocks take turns, so that the columns of many rows of
// x stay in a second-level cache.
template <class V, class T, bool kPacked>
class FloatBlocks {
 public:
  FloatBlocks(const Weights& w, int row, int count, float* scratch)
      : w_(w),
        count_(count),
        memory_(scratch),
        sources_(w, row, count, scratch) {}

  // sums [block, rows, kBfloatRows] = the products. Returns the number of
  // blocks before the first that bfloat16 cannot express.
  int multiply(const LeftTiles& x, float* sums) {
    int width = w_.columns.end - w_.columns.begin;
    int panels = (width + kFloatPanelColumns - 1) / kFloatPanelColumns;
    int units = panels * count_;
    bool keeps = x.count <= 2 && count_ == 1;
    source_ = sources_.open(0, columns(0));
    bool fits = true;
    for (int i = 0; i < steps(0); ++i) fits &= source_.decode(i, panel(0));
    fits_[0] &= fits;
    for (int u = 0; u < units; ++u) {
      if (u + 1 < units) {
        source_ = sources_.open((u + 1) % count_, columns(u + 1));
      }
      float* to = sums + u % count_ * x.sums();
      for (int tile = 0; tile < x.count; tile += 2) {
        Pass pass{u, tile, u < count_, !keeps, !keeps || u + 1 == units};
        bool decodes = tile == 0 && u + 1 < units;
        auto run = [&](auto lefts) {
          constexpr int kLefts = decltype(lefts)::value;
          decodes ? add<kLefts, true>(x, pass, to)
                  : add<kLefts, false>(x, pass, to);
        };
        tile + 1 < x.count ? run(Int<2>{}) : run(Int<1>{});
      }
    }
    int fit = 0;
    while (fit < count_ && fits_[fit]) ++fit;
    return fit;
  }

 private:
  // The products of a unit and one or two left tiles. Sums stay in registers
  // unless others take them.
  struct Pass {
    int unit, tile;
    bool first, loads, stores;
  };

  int32_t* panel(int u) const {
    return reinterpret_cast<int32_t*>(memory_) + u % 2 * kPanelWords;
  }
  Range columns(int u) const {
    int begin = w_.columns.begin + u / count_ * kFloatPanelColumns;
    return {begin, smaller(begin + kFloatPanelColumns, w_.columns.end)};
  }
  int steps(int u) const {
    Range c = columns(u);
    return (c.end - c.begin + kBfloatRun - 1) / kBfloatRun;
  }

  template <int kLefts, bool kDecodes>
  void add(const LeftTiles& x, Pass pass, float* sums) {
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
    int next = kDecodes ? steps(pass.unit + 1) : 0;
    const int32_t* right = panel(pass.unit);
    int32_t* decoded = panel(pass.unit + 1);
    const uint8_t* left = x.rows +
                          columns(pass.unit).begin / kBfloatRun * x.run_bytes +
                          pass.tile * tile_bytes;
    const PanelSource<V, T, kPacked> from = source_;
    bool fits = true;
    for (int i = 0; i < count; ++i, right += kStepWords) {
      const uint8_t* rows = left + i * x.run_bytes;
      V::template load_left<0>(rows, kRowBytes);
      V::template load_right<0>(right);
      V::template add_bfloats<0, 0>();
      V::template load_right<1>(right + kRightWords);
      V::template add_bfloats<0, 1>();
      if constexpr (kLefts == 2) {
        V::template load_left<1>(rows + tile_bytes, kRowBytes);
        V::template add_bfloats<1, 0>();
        V::template add_bfloats<1, 1>();
      }
      if constexpr (kDecodes) {
        if (i < next) fits &= from.decode(i, decoded);
      }
    }
    if constexpr (kDecodes) fits_[(pass.unit + 1) % count_] &= fits;
    each_tile<kLefts>([&](auto left,
                          auto right) __attribute__((always_inline)) {
      constexpr int kLeft = decltype(left)::value;
      constexpr int kRight = decltype(right)::value;
      float* p = sums + kLeft * x.tile_rows * kBfloatRows + kRight * V::kLanes;
      if (pass.stores) V::template store_tile<kLeft, kRight>(p, kSumBytes);
    });
    V::in_order();
  }

  const Weights& w_;
  int count_;
  float* memory_;
  PanelSources<V, T, kPacked> sources_;
  PanelSource<V, T, kPacked> source_{};  // of the unit that is decoded
  bool fits_[kMostBlocks] = {true, true, true, true};
};

// y[m, columns] = the sums [M planes, kBfloatRows] of a block, rounded.
template <class V, class A>
void join_planes(const QuantizedRows& x,
                 int M,
                 const float* sums,
                 Dtype dtype,
                 int N,
                 Range columns,
                 void* y) {
  for (int m = 0; m < M; ++m) {
    alignas(64) float row[kBfloatRows];
    for (int i = 0; i < kBfloatRows; i += V::kLanes) {
      const float* from = sums + m * kPlanes<A> * kBfloatRows + i;
      typename V::F sum = V::load(from);
      if constexpr (kPlanes<A> == 2) {
        sum = V::add(sum, V::load(from + kBfloatRows));
      }
      V::store(row + i, V::mul(sum, V::set1(x.scales[m])));
    }
    round_floats<V>(
        dtype,
        row,
        smaller(columns.end - columns.begin, kBfloatRows),
        static_cast<uint8_t*>(y) +
            (static_cast<size_t>(m) * N + columns.begin) * size_of(dtype));
  }
}

// As BfloatKernels::multiply.
template <class V, class A>
int multiply_floats(const Weights& w,
                    const QuantizedRows& x,
                    int M,
                    Range rows,
                    Dtype dtype,
                    void* y,
                    float* scratch) {
  static_assert(kBfloatRows == kPanelRows<V>);
  float* sums = scratch + kPanelFloats;
  int planes = M * kPlanes<A>;
  int tiles = (planes + kTileSides - 1) / kTileSides;
  int tile_rows = (planes + tiles - 1) / tiles;
  LeftTiles left{static_cast<const uint8_t*>(x.codes),
                 size_t(x.rows) * kPlanes<A> * kBfloatRun * sizeof(uint16_t),
                 tiles,
                 tile_rows};
  // Two tiles keep their sums in registers.
  int most = tiles <= 2 ? 1 : smaller(kMostBlocks, kSumFloats / left.sums());
  typename V::Tiles configured(tile_rows, kTileDepth);
  for (int n = rows.begin, fit = 0, blocks; n < rows.end;
       n += blocks * kBfloatRows) {
    blocks = smaller(most, (rows.end - n + kBfloatRows - 1) / kBfloatRows);
    with_tiles(w.format, [&](auto form) {
      using T = decltype(form);
      fit = w.packed ? FloatBlocks<V, T, true>(w, n, blocks, scratch)
                           .multiply(left, sums)
                     : FloatBlocks<V, T, false>(w, n, blocks, scratch)
                           .multiply(left, sums);
    });
    for (int b = 0; b < fit; ++b) {
      join_planes<V, A>(x,
                        M,
                        sums + b * left.sums(),
                        dtype,
                        w.N,
                        Range{n + b * kBfloatRows, rows.end},
                        y);
    }
    if (fit < blocks) return n + fit * kBfloatRows;
  }
  return rows.end;
}

}  // namespace
}  // namespace nibble::cpu
