// Integer codes with their scales and biases as right tiles, one or two
// bfloat16 for each weight.
//
// A code of b bits becomes 1 + code / 2^b by a shift and a mask: it is the
// first bits of a mantissa. So w = scale 2^b (1 + code / 2^b) + (bias - scale
// 2^b) is one multiplication.
#pragma once

#include "csrc/cpu/bfloat_source-inl.h"
#include "csrc/cpu/integers-inl.h"

namespace nibble::cpu {
namespace {

// The panel words of a panel, kBits a code, and its scales and biases.
template <class V, int kBits, int kPlanes>
struct AffineSource {
  static constexpr int kWords = kBfloatRun * kBits / 32;
  static constexpr int kPieces = 2 * kWords;

  const int32_t* words;  // [steps, strips, kWords, lanes]
  const float* params;   // [steps, strips, 2, lanes]
  bool fits;

  // As PanelSource::decode. A piece is a word of each lane.
  [[gnu::always_inline]] inline bool decode(int piece, int32_t* panel) const {
    const float* p = params + unsigned(piece) / kWords * (2 * V::kLanes);
    typename V::F scale = V::load(p), bias = V::load(p + V::kLanes);
    typename V::I codes = V::int_load(words + piece * V::kLanes);
    int32_t* to = panel + piece * (kRightWords / kWords);
    each_int<16 / kBits>([&](auto pair) __attribute__((always_inline)) {
      constexpr int kFirst = decltype(pair)::value;
      auto number = [&](auto part) __attribute__((always_inline)) {
        constexpr int kPart = decltype(part)::value;
        return V::fma(V::template fraction<kBits, kPart>(codes), scale, bias);
      };
      V::template store_pairs<kPlanes>(number(Int<kFirst>{}),
                                       number(Int<kFirst + 16 / kBits>{}),
                                       to + kFirst * V::kLanes,
                                       to + kFirst * V::kLanes + kPlaneWords);
    });
    return fits;
  }
};

// Blocks of rows from `row` on. The memory has room for two panels, then for a
// panel's words, scales and biases.
template <class V, int kBits, int kWeightPlanes>
class AffineSources {
 public:
  using Source = AffineSource<V, kBits, kWeightPlanes>;
  static constexpr int kPlanes = kWeightPlanes;
  static constexpr bool kApart = true;

  AffineSources(const Weights& w, int row, int, float* memory)
      : w_(w),
        row_(row),
        words_(reinterpret_cast<int32_t*>(memory) + 2 * kPanelWords<kPlanes>),
        params_(memory + 2 * kPanelWords<kPlanes> + kMostWords),
        panel_(words_ + kMostWords + kSteps * kStepParams) {}

  // Returns the source of columns `c` of a block.
  Source open(int block, Range c) const {
    Source source{words_, params_, true};
    int row = row_ + block * kBfloatRows;
    with_bits(w_.format.bits, [&](auto bits) {
      constexpr int kCodeBits = decltype(bits)::value;
      if constexpr (panel_bits(kCodeBits) == kBits) {
        w_.packed ? copy_packed<kCodeBits>(row, c)
                  : copy_rows<kCodeBits>(row, c);
        source.fits = fill_params<IntegerCodes<kCodeBits>>(row, c);
      }
    });
    return source;
  }

 private:
  static constexpr int kSteps = kBfloatColumns / kBfloatRun;
  static constexpr int kStripWords = Source::kWords * V::kLanes;
  static constexpr int kStepParams = 2 * kBfloatRows;
  static constexpr int kMostWords = kSteps * 2 * kStripWords;

  template <int kCodeBits>
  void copy_packed(int row, Range c) const {
    int group_size = w_.format.group_size;
    int groups = (c.end - c.begin) / group_size;
    size_t group_bytes =
        V::kLanes * size_t(packed_group_bytes(w_.format, w_.scale_dtype));
    for (int s = 0; s < 2; ++s) {
      const uint8_t* p = packed_strip<V>(w_, row + s * V::kLanes, c.begin);
      int32_t* to = words_ + s * kStripWords;
      for (int g = 0; g < groups; ++g, p += group_bytes) {
        prefetch(p + V::kAhead, static_cast<int>(group_bytes));
        const uint8_t* run = p;
        for (int k = 0; k < group_size; k += kBfloatRun) {
          int32_t* word_to = to;
          by_packed_words<V, kCodeBits>(
              run, kBfloatRun, [&](typename V::I word) {
                V::int_store(word_to, word);
                word_to += V::kLanes;
              });
          run += bytes_of(kBfloatRun, kCodeBits) * V::kLanes;
          to += 2 * kStripWords;
        }
      }
    }
  }

  template <int kCodeBits>
  void copy_rows(int row, Range c) const {
    ptrdiff_t ahead =
        bytes_of(c.end < w_.K ? kBfloatColumns : kBfloatRows * w_.K - c.begin,
                 kCodeBits);
    fill_panel<V, kCodeBits>(w_, row, c, ahead, panel_);
    int words = (c.end - c.begin) / kBfloatRun * Source::kWords;
    for (int d = 0; d < words; ++d) {
      int32_t* to = words_ + d / Source::kWords * 2 * kStripWords +
                    d % Source::kWords * V::kLanes;
      for (int s = 0; s < 2; ++s) {
        V::int_store(to + s * kStripWords,
                     V::int_load(panel_ + d * kBfloatRows + s * V::kLanes));
      }
    }
  }

  // Returns false if a product may overflow or lose bits to subnormal numbers.
  template <class Q>
  bool fill_params(int row, Range c) const {
    constexpr float kOne = 1 << kBits, kMost = (1 << Q::kBits) - 1;
    StripParams<V, Q, kBfloatRows> params(w_, row, c);
    int group_size = w_.format.group_size;
    int groups = (c.end - c.begin) / group_size;
    bool fits = true;
    float* to = params_;
    for (int g = 0; g < groups; ++g) {
      for (int lane = 0; lane < kBfloatRows; lane += V::kLanes) {
        typename V::F scale = V::load(params.scale[g] + lane);
        typename V::F bias = params.biases(g, lane);
        fits &= V::are_ordinary(
            V::fma(V::abs(scale), V::set1(kMost), V::abs(bias)));
        bias = V::fma(scale, V::set1(-kOne), bias);
        scale = V::mul(scale, V::set1(kOne));
        float* p = to + 2 * lane;
        for (int k = 0; k < group_size; k += kBfloatRun, p += kStepParams) {
          V::store(p, scale);
          V::store(p + V::kLanes, bias);
        }
      }
      to += group_size / kBfloatRun * kStepParams;
    }
    return fits;
  }

  const Weights& w_;
  int row_;
  int32_t* words_;
  float* params_;
  int32_t* panel_;  // words of rows that are not packed
};

}  // namespace
}  // namespace nibble::cpu
