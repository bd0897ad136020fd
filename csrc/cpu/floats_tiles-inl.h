// x @ w_hat^T for codes that are floats, in tiles of bfloat16. A weight is
// exact in bfloat16 with its scale, so a tile adds up all of K: a group needs
// no work of its own.
//
// x is a sum of one or two planes of bfloat16, and each plane is a row of a
// left tile. A row of x is scaled by a power of two, so that its largest number
// is near 1: sums neither overflow nor become subnormal, which tiles do not
// know.
//
// A block is 32 weight rows, two right tiles. While a panel of its columns is
// multiplied with the first rows of x, the next panel is decoded: decoding and
// tiles use different units. Sums have one order, whatever the rows of x.
#pragma once

#include "csrc/cpu/floats_split-inl.h"
#include "csrc/cpu/integers_tiles-inl.h"

namespace nibble::cpu {
namespace {

// Steps in a panel: it has 16 KB, and two of them stay in a first-level cache.
constexpr int kPanelSteps = 8;
constexpr int kFloatPanelColumns = kPanelSteps * kBfloatRun;
// Words of a right tile, and of a step: two of them.
constexpr int kRightWords = 16 * 16;
constexpr int kStepWords = 2 * kRightWords;

// ---- products -----------------------------------------------------------

// The words and scales of a panel's columns, for each strip of 16 weight rows.
struct PanelSource {
  const uint8_t* words[2];
  const uint8_t* scales[2];  // unless packed
  int groups;
};

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
  static constexpr int kMost = 4;

  FloatBlocks(const Weights& w, int row, int count, float* scratch)
      : w_(w), row_(row), count_(count), memory_(scratch) {
    for (int s = 0; kPacked && s < 2 * count; ++s) {
      strips_[s] = packed_strip<V>(w, row + s * V::kLanes, w.columns.begin);
    }
  }

  // sums [block, rows, kBfloatRows] = the products. Returns the number of
  // blocks before the first that bfloat16 cannot express.
  int multiply(const LeftTiles& x, float* sums) {
    int width = w_.columns.end - w_.columns.begin;
    int panels = (width + kFloatPanelColumns - 1) / kFloatPanelColumns;
    int units = panels * count_;
    bool keeps = x.count <= 2 && count_ == 1;
    open(0);
    bool fits = true;
    for (int i = 0; i < steps(0); ++i) fits &= decode(source_, i, panel(0));
    fits_[0] &= fits;
    for (int u = 0; u < units; ++u) {
      if (u + 1 < units) open(u + 1);
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
  static constexpr int kGroupWords = T::kGroup * T::kBits / 32;
  static constexpr size_t kWordBytes = 4 * V::kLanes * (kPacked ? 1 : 2);
  static constexpr size_t kCodeBytes = kGroupWords * kWordBytes;
  static constexpr size_t kGroupBytes = kCodeBytes + (kPacked ? V::kLanes : 0);

  // The products of a unit and one or two left tiles. Sums stay in registers
  // unless others take them.
  struct Pass {
    int unit, tile;
    bool first, loads, stores;
  };

  int32_t* panel(int u) const {
    return reinterpret_cast<int32_t*>(memory_) +
           u % 2 * kPanelSteps * kStepWords;
  }
  Range columns(int u) const {
    int begin = w_.columns.begin + u / count_ * kFloatPanelColumns;
    return {begin, smaller(begin + kFloatPanelColumns, w_.columns.end)};
  }
  int steps(int u) const {
    Range c = columns(u);
    return (c.end - c.begin + kBfloatRun - 1) / kBfloatRun;
  }

  // Makes unit u the one that is decoded.
  void open(int u) {
    Range c = columns(u);
    int block = u % count_;
    source_.groups = (c.end - c.begin) / T::kGroup;
    if constexpr (kPacked) {
      size_t begin = size_t(c.begin - w_.columns.begin) / T::kGroup;
      for (int s = 0; s < 2; ++s) {
        source_.words[s] = strips_[2 * block + s] + begin * kGroupBytes;
      }
      return;
    }
    int32_t* words =
        reinterpret_cast<int32_t*>(memory_) + 2 * kPanelSteps * kStepWords;
    uint8_t* scales = reinterpret_cast<uint8_t*>(
        words + kFloatPanelColumns * T::kBits / 32 * kBfloatRows);
    int row = row_ + block * kBfloatRows;
    ptrdiff_t ahead = bytes_of(
        c.end < w_.K ? kFloatPanelColumns : kBfloatRows * w_.K - c.begin,
        T::kBits);
    fill_panel<V, T::kBits>(w_, row, c, ahead, words);
    size_t row_groups = w_.K / T::kGroup;
    for (int r = 0; r < kBfloatRows; ++r) {
      const uint8_t* from =
          w_.scales + strip_row(w_, row + r) * row_groups + c.begin / T::kGroup;
      for (int g = 0; g < source_.groups; ++g) {
        scales[g * kBfloatRows + r] = from[g];
      }
    }
    for (int s = 0; s < 2; ++s) {
      source_.words[s] =
          reinterpret_cast<const uint8_t*>(words + s * V::kLanes);
      source_.scales[s] = scales + s * V::kLanes;
    }
  }

  // Decodes step i of the open unit. Returns false if bfloat16 cannot express
  // it. The strides of packed weights are constants: registers are few.
  [[gnu::always_inline]] static inline bool decode(const PanelSource& from,
                                                   int i,
                                                   int32_t* panel) {
    constexpr int kGroups = kBfloatRun / T::kGroup;
    bool fits = true;
    int32_t* to = panel + i * kStepWords;
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
#pragma GCC unroll 2
      for (int j = 0; j < kGroups; ++j, to += kRightWords / kGroups) {
        int g = i * kGroups + j;
        if (kGroups > 1 && g >= from.groups) {
          for (int n = 0; n < kRightWords / kGroups; ++n) to[n] = 0;
          continue;
        }
        const uint8_t* words = from.words[s] + g * kGroupBytes;
        const uint8_t* scales = words + kCodeBytes;
        if constexpr (kPacked) {
#pragma GCC unroll 9
          for (int line = 0; line <= kGroupWords; ++line) {
            __builtin_prefetch(words + V::kAhead + 64 * line);
          }
        } else {
          scales = from.scales[s] + g * kBfloatRows;
        }
        fits &= T::template decode<V, kWordBytes>(words, scales, to);
      }
    }
    return fits;
  }

  template <int kLefts, bool kDecodes>
  void add(const LeftTiles& x, Pass pass, float* sums) {
    constexpr size_t kSumBytes = kBfloatRows * sizeof(float);
    constexpr size_t kRowBytes = kBfloatRun * sizeof(uint16_t);
    size_t tile_bytes = x.tile_rows * kRowBytes;
    sums += size_t(pass.tile) * x.tile_rows * kBfloatRows;
    V::in_order();
    each<kLefts>([&](auto left, auto right) __attribute__((always_inline)) {
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
    PanelSource from = source_;
    bool fits = true;
    for (int i = 0; i < count; ++i, right += kStepWords) {
      const uint8_t* rows = left + i * x.run_bytes;
      V::template load_rows<0>(rows, kRowBytes);
      V::template load_right<0>(right);
      V::template add_bfloats<0, 0>();
      V::template load_right<1>(right + kRightWords);
      V::template add_bfloats<0, 1>();
      if constexpr (kLefts == 2) {
        V::template load_rows<1>(rows + tile_bytes, kRowBytes);
        V::template add_bfloats<1, 0>();
        V::template add_bfloats<1, 1>();
      }
      if constexpr (kDecodes) {
        if (i < next) fits &= decode(from, i, decoded);
      }
    }
    if constexpr (kDecodes) fits_[(pass.unit + 1) % count_] &= fits;
    each<kLefts>([&](auto left, auto right) __attribute__((always_inline)) {
      constexpr int kLeft = decltype(left)::value;
      constexpr int kRight = decltype(right)::value;
      float* p = sums + kLeft * x.tile_rows * kBfloatRows + kRight * V::kLanes;
      if (pass.stores) V::template store_sums<kLeft, kRight>(p, kSumBytes);
    });
    V::in_order();
  }

  // Calls fn(Int<left>, Int<right>) for each tile of sums.
  template <int kLefts, typename Fn>
  [[gnu::always_inline]] static inline void each(Fn&& fn) {
    fn(Int<0>{}, Int<0>{});
    fn(Int<0>{}, Int<1>{});
    if constexpr (kLefts == 2) {
      fn(Int<1>{}, Int<0>{});
      fn(Int<1>{}, Int<1>{});
    }
  }

  const Weights& w_;
  int row_, count_;
  float* memory_;
  const uint8_t* strips_[2 * kMost];
  PanelSource source_{};
  bool fits_[kMost] = {true, true, true, true};
};

// y[m, from..] = the sums [M planes, kBfloatRows] of a block, rounded.
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
  int tiles = (planes + kTileRows - 1) / kTileRows;
  int tile_rows = (planes + tiles - 1) / tiles;
  LeftTiles left{static_cast<const uint8_t*>(x.codes),
                 size_t(x.rows) * kPlanes<A> * kBfloatRun * sizeof(uint16_t),
                 tiles,
                 tile_rows};
  // Two tiles keep their sums in registers.
  int most = tiles <= 2 ? 1 : smaller(4, kSumFloats / left.sums());
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
