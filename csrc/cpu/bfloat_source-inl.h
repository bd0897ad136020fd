// The weights of a block, 32 rows, as panels of right tiles. Packed weights are
// decoded as they lie. Others are first transposed, a panel at a time.
#pragma once

#include "csrc/cpu/bfloat_formats-inl.h"
#include "csrc/cpu/bfloat_kernels.h"
#include "csrc/cpu/integers-inl.h"

namespace nibble::cpu {
namespace {

// Words of a right tile.
constexpr int kRightWords = 16 * 16;
// A step is kBfloatRun columns: two right tiles.
constexpr int kStepWords = 2 * kRightWords;
// Columns in a panel [planes, steps, strips, kRightWords]. With one plane it
// has 16 KB, and two panels stay in a first-level cache. To load and store the
// sums of a panel takes as long as 16 products, one sixth of those of two
// planes.
constexpr int kBfloatColumns = 8 * kBfloatRun;
constexpr int kPlaneWords = kBfloatColumns / kBfloatRun * kStepWords;
template <int kPlanes>
constexpr int kPanelWords = kPlanes * kPlaneWords;

// Most blocks of rows that take turns in a panel.
constexpr int kMostBlocks = 8;

// The words and scales of the columns of a panel, for both strips of 16 weight
// rows.
template <class V, class T, bool kPacked>
struct PanelSource {
  static constexpr int kGroupWords = T::kGroup * T::kBits / 32;
  static constexpr size_t kWordBytes = 4 * V::kLanes * (kPacked ? 1 : 2);
  static constexpr size_t kCodeBytes = kGroupWords * kWordBytes;
  static constexpr size_t kGroupBytes = kCodeBytes + (kPacked ? V::kLanes : 0);

  const uint8_t* words[2];
  const uint8_t* scales[2];  // unless packed
  int groups;

  // Decodes a piece of a panel, a step. Returns false if bfloat16 cannot
  // express it. The strides of packed weights are constants: registers are few.
  static constexpr int kPieces = 1;
  [[gnu::always_inline]] inline bool decode(int piece, int32_t* panel) const {
    constexpr int kGroups = kBfloatRun / T::kGroup;
    bool fits = true;
    int32_t* to = panel + piece * kStepWords;
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
#pragma GCC unroll 2
      for (int j = 0; j < kGroups; ++j, to += kRightWords / kGroups) {
        int g = piece * kGroups + j;
        if (kGroups > 1 && g >= groups) {
          for (int n = 0; n < kRightWords / kGroups; ++n) to[n] = 0;
          continue;
        }
        const uint8_t* codes = words[s] + g * kGroupBytes;
        const uint8_t* group_scales = codes + kCodeBytes;
        if constexpr (kPacked) {
#pragma GCC unroll 9
          for (int line = 0; line <= kGroupWords; ++line) {
            __builtin_prefetch(codes + V::kAhead + 64 * line);
          }
        } else {
          group_scales = scales[s] + g * kBfloatRows;
        }
        fits &= T::template decode<V, kWordBytes>(codes, group_scales, to);
      }
    }
    return fits;
  }
};

// Blocks of rows from `row` on. The memory has room for two panels, then for a
// panel's words and scales.
template <class V, class T, bool kPacked>
class PanelSources {
 public:
  using Source = PanelSource<V, T, kPacked>;
  static constexpr int kPlanes = 1;
  // Whether the loop around decoding is a function: it needs most registers.
  static constexpr bool kApart = false;

  PanelSources(const Weights& w, int row, int count, float* memory)
      : w_(w), row_(row), memory_(memory) {
    for (int s = 0; kPacked && s < 2 * count; ++s) {
      strips_[s] = packed_strip<V>(w, row + s * V::kLanes, w.columns.begin);
    }
  }

  // Returns the source of columns `c` of a block.
  Source open(int block, Range c) const {
    Source source;
    source.groups = (c.end - c.begin) / T::kGroup;
    if constexpr (kPacked) {
      size_t begin = size_t(c.begin - w_.columns.begin) / T::kGroup;
      for (int s = 0; s < 2; ++s) {
        source.words[s] = strips_[2 * block + s] + begin * Source::kGroupBytes;
      }
      return source;
    }
    int32_t* words = reinterpret_cast<int32_t*>(memory_) + 2 * kPanelWords<1>;
    uint8_t* scales = reinterpret_cast<uint8_t*>(
        words + kBfloatColumns * T::kBits / 32 * kBfloatRows);
    int row = row_ + block * kBfloatRows;
    ptrdiff_t ahead = bytes_of(
        c.end < w_.K ? kBfloatColumns : kBfloatRows * w_.K - c.begin, T::kBits);
    fill_panel<V, T::kBits>(w_, row, c, ahead, words);
    size_t row_groups = w_.K / T::kGroup;
    for (int r = 0; r < kBfloatRows; ++r) {
      const uint8_t* from =
          w_.scales + strip_row(w_, row + r) * row_groups + c.begin / T::kGroup;
      for (int g = 0; g < source.groups; ++g) {
        scales[g * kBfloatRows + r] = from[g];
      }
    }
    for (int s = 0; s < 2; ++s) {
      source.words[s] = reinterpret_cast<const uint8_t*>(words + s * V::kLanes);
      source.scales[s] = scales + s * V::kLanes;
    }
    return source;
  }

 private:
  const Weights& w_;
  int row_;
  float* memory_;
  const uint8_t* strips_[2 * kMostBlocks];
};

}  // namespace
}  // namespace nibble::cpu
