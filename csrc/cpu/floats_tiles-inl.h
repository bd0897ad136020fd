// x @ w_hat^T for codes that are floats, in tiles of bfloat16. A weight is
// exact in bfloat16 with its scale, so a tile adds up all of K: a group needs
// no work of its own.
//
// x is a sum of one or two planes of bfloat16, and each plane is a row of a left
// tile. A row of x is scaled by a power of two, so that its largest number is
// near 1: sums neither overflow nor become subnormal, which tiles do not know.
//
// A block is 32 weight rows, two right tiles. While a panel of its columns is
// multiplied with the first rows of x, the next panel is decoded: decoding and
// tiles use different units. Sums have one order, whatever the rows of x.
#pragma once

#include "csrc/cpu/integers_tiles-inl.h"

namespace nibble::cpu {
namespace {

// Columns in a right tile.
constexpr int kStepColumns = 32;
// Steps in a panel: it has 16 KB, and two of them stay in a first-level cache.
constexpr int kPanelSteps = 8;
constexpr int kFloatPanelColumns = kPanelSteps * kStepColumns;
// Words of a right tile, and of a step: two of them.
constexpr int kRightWords = 16 * 16;
constexpr int kStepWords = 2 * kRightWords;

// Scales E8M0 with which the products of codes and of x are normal numbers,
// with ample room: 2^-63 to 2^63.
constexpr int kLeastE8m0 = 64, kMostE8m0 = 190;

// ---- formats ------------------------------------------------------------
// decode<V>() writes the rows of a right tile that one group of 16 weight rows
// has, and returns false if bfloat16 cannot express them all. `words` are the
// lanes' words, `stride` bytes apart.

template <class V>
typename V::I word_at(const uint8_t* words, size_t stride, int d) {
  return V::int_load(reinterpret_cast<const int32_t*>(words + d * stride));
}

// True if lanes whose scales are outside the range have zeros only.
template <class V>
[[gnu::noinline]] bool are_zeros(typename V::Scales scales,
                                 const uint8_t* words,
                                 size_t stride,
                                 int count,
                                 int bits) {
  typename V::I all = V::int_zero();
  for (int d = 0; d < count; ++d) {
    all = V::int_or(all, word_at<V>(words, stride, d));
  }
  return (V::outside(scales, kLeastE8m0, kMostE8m0) & V::any_of(all, bits)) ==
             0 &&
         V::equal(scales, 255) == 0;
}

struct Mxfp4Tiles {
  static constexpr int kBits = 4, kGroup = 32;
  static constexpr float kUnit = 1;  // of x

  template <class V>
  static bool decode(const uint8_t* words,
                     size_t stride,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I below = V::exponents_below(s, V::kMostE2m1);
#pragma GCC unroll 4
    for (int d = 0; d < 4; ++d, out += 4 * V::kLanes) {
      typename V::I word = word_at<V>(words, stride, d);
      V::int_store(out, V::template scaled_e2m1<0>(word, below));
      V::int_store(out + V::kLanes, V::template scaled_e2m1<1>(word, below));
      V::int_store(out + 2 * V::kLanes,
                   V::template scaled_e2m1<2>(word, below));
      V::int_store(out + 3 * V::kLanes,
                   V::template scaled_e2m1<3>(word, below));
    }
    return V::outside(s, kLeastE8m0, kMostE8m0) == 0 ||
           are_zeros<V>(s, words, stride, 4, 0x77777777);
  }
};

// Weights over 2^112 are float16 read as bfloat16, and x has the factor.
struct Nvfp4Tiles {
  static constexpr int kBits = 4, kGroup = 16;
  static constexpr float kUnit = 0x1p112f;

  template <class V>
  static bool decode(const uint8_t* words,
                     size_t stride,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I halves = V::halves_of_scales(s);
#pragma GCC unroll 2
    for (int d = 0; d < 2; ++d, out += 4 * V::kLanes) {
      typename V::I word = word_at<V>(words, stride, d);
      V::int_store(out, V::template scaled_e2m1_of_halves<0>(word, halves));
      V::int_store(out + V::kLanes,
                   V::template scaled_e2m1_of_halves<1>(word, halves));
      V::int_store(out + 2 * V::kLanes,
                   V::template scaled_e2m1_of_halves<2>(word, halves));
      V::int_store(out + 3 * V::kLanes,
                   V::template scaled_e2m1_of_halves<3>(word, halves));
    }
    return V::nan_e4m3(s) == 0;
  }
};

struct Mxfp8Tiles {
  static constexpr int kBits = 8, kGroup = 32;
  static constexpr float kUnit = 1;
  static constexpr int kWords = 8;

  template <class V, bool kOrdinary>
  [[gnu::always_inline]] static inline void decode_as(const uint8_t* words,
                                                      size_t stride,
                                                      typename V::I over,
                                                      int32_t* out) {
#pragma GCC unroll 8
    for (int d = 0; d < kWords; ++d, out += 2 * V::kLanes) {
      typename V::I word = word_at<V>(words, stride, d);
      V::int_store(out, V::template scaled_e4m3<0, kOrdinary>(word, over));
      V::int_store(out + V::kLanes,
                   V::template scaled_e4m3<1, kOrdinary>(word, over));
    }
  }

  template <class V>
  static bool decode(const uint8_t* words,
                     size_t stride,
                     const uint8_t* scales,
                     int32_t* out) {
    typename V::Scales s = V::load_scales(scales);
    typename V::I over = V::exponents_over(s, 7);
    typename V::I seen = V::int_zero();
#pragma GCC unroll 8
    for (int d = 0; d < kWords; ++d) {
      seen = V::e4m3_class(seen, word_at<V>(words, stride, d));
    }
    decode_as<V, true>(words, stride, over, out);
    if (V::are_ordinary(seen) && V::outside(s, kLeastE8m0, kMostE8m0) == 0) {
      return true;
    }
    return decode_rare<V>(words, stride, s, out);
  }

  template <class V>
  [[gnu::noinline]] static bool decode_rare(const uint8_t* words,
                                            size_t stride,
                                            typename V::Scales s,
                                            int32_t* out) {
    decode_as<V, false>(words, stride, V::exponents_over(s, 7), out);
    for (int d = 0; d < kWords; ++d) {
      if (V::nan_codes(word_at<V>(words, stride, d))) return false;
    }
    return V::outside(s, kLeastE8m0, kMostE8m0) == 0 ||
           are_zeros<V>(s, words, stride, kWords, 0x7f7f7f7f);
  }
};

// Calls fn with the type of the format, if it is one of floats.
template <typename Fn>
void with_tiles(QuantFormat format, Fn&& fn) {
  if (format.mode == Mode::kMxfp4) return fn(Mxfp4Tiles{});
  if (format.mode == Mode::kNvfp4) return fn(Nvfp4Tiles{});
  if (format.mode == Mode::kMxfp8) return fn(Mxfp8Tiles{});
}

// ---- activations --------------------------------------------------------

// out = x [rows, K] as planes, over out.scales [rows]. The scale of a row that
// is not finite is not finite.
template <class V, class A>
void split_rows(Dtype dtype,
                QuantFormat format,
                const void* x,
                int rows,
                int K,
                const QuantizedRows& out) {
  constexpr int32_t kInfinite = 0x7f800000, kOne = 1 << 23;
  size_t row_bytes = size_t(K) * size_of(dtype);
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    with_tiles(format, [&](auto form) {
      using T = decltype(form);
      for (int r = 0; r < rows; ++r) {
        const uint8_t* p = static_cast<const uint8_t*>(x) + r * row_bytes;
        typename V::I best = V::int_zero();
        auto load = [&](int k) __attribute__((always_inline)) {
          return V::template load_as_float<kDtype>(p + k * size_of(kDtype));
        };
        for (int k = 0; k < K; k += V::kLanes) {
          best = V::max_magnitude(best, load(k));
        }
        int32_t lanes[V::kLanes], most = 0;
        V::int_store(lanes, best);
        for (int32_t lane : lanes) most = lane > most ? lane : most;
        // A power of two whose inverse is a normal number.
        int32_t scale = most < kInfinite ? most & kInfinite : most;
        if (scale < kOne) scale = kOne;
        __builtin_memcpy(&out.scales[r], &scale, 4);
        int32_t power = scale > 253 * kOne ? 253 * kOne : scale & kInfinite;
        if (scale < kInfinite) __builtin_memcpy(&out.scales[r], &power, 4);
        int32_t inverse_bits = 254 * kOne - power;
        float inverse;
        __builtin_memcpy(&inverse, &inverse_bits, 4);
        int end = (K + kStepColumns - 1) / kStepColumns * kStepColumns;
        for (int k = 0; k < end; k += V::kLanes) {
          typename V::F v = k < K ? load(k) : V::zero();
          v = V::mul(V::mul(v, V::set1(inverse)), V::set1(T::kUnit));
          uint16_t* to = out.at<A>(r, k);
          V::split(V::template to_tile_order<T::kBits>(v),
                   to,
                   kPlanes<A> == 2 ? to + kRunCodes : nullptr);
        }
      }
    });
  });
}

// ---- products -----------------------------------------------------------

// The words and scales of a panel's columns, for each strip of 16 weight rows.
struct PanelSource {
  const uint8_t* words[2];
  const uint8_t* scales[2];
  size_t word_bytes, group_bytes, scale_bytes;  // from one to the next
  int groups;
  bool packed;
};

// Rows of x in tiles.
struct LeftTiles {
  const void* rows;
  size_t run_bytes;  // from one run to the next
  int count, tile_rows;
};

// A block: 32 weight rows and all of their columns.
template <class V, class T>
class FloatBlock {
 public:
  FloatBlock(const Weights& w, int row, float* scratch)
      : w_(w), row_(row), columns_(w.columns), memory_(scratch) {}

  // sums [rows, 32] = the products. Returns false if bfloat16 cannot express
  // the weights.
  bool multiply(const LeftTiles& x, float* sums) {
    int panels = (columns_.end - columns_.begin + kFloatPanelColumns - 1) /
                 kFloatPanelColumns;
    open(0);
    for (int i = 0; i < steps(0); ++i) fits_ &= decode(source_, i, panel(0));
    for (int p = 0; p < panels; ++p) {
      if (p + 1 < panels) open(p + 1);
      for (int tile = 0; tile < x.count; tile += 2) {
        bool decodes = tile == 0 && p + 1 < panels;
        bool first = p == 0, keeps = x.count <= 2, last = p + 1 == panels;
        bool loads = !first && !keeps, stores = last || !keeps;
        float* to = sums + size_t(tile) * x.tile_rows * kBfloatRows;
        auto run = [&](auto lefts) {
          if (decodes) {
            pass<decltype(lefts)::value, true>(
                x, p, tile, first, loads, stores, to);
          } else {
            pass<decltype(lefts)::value, false>(
                x, p, tile, first, loads, stores, to);
          }
        };
        tile + 1 < x.count ? run(Int<2>{}) : run(Int<1>{});
      }
    }
    return fits_;
  }

 private:
  int32_t* panel(int p) const {
    return reinterpret_cast<int32_t*>(memory_) +
           p % 2 * kPanelSteps * kStepWords;
  }
  Range columns(int p) const {
    int begin = columns_.begin + p * kFloatPanelColumns;
    return {begin, smaller(begin + kFloatPanelColumns, columns_.end)};
  }
  int steps(int p) const {
    Range c = columns(p);
    return (c.end - c.begin + kStepColumns - 1) / kStepColumns;
  }

  // Makes panel p the one that is decoded.
  void open(int p) {
    Range c = columns(p);
    constexpr int kWordsOfGroup = T::kGroup * T::kBits / 32;
    size_t done = source_.groups;
    source_.groups = (c.end - c.begin) / T::kGroup;
    if (w_.packed) {
      for (int s = 0; s < 2; ++s) {
        source_.words[s] =
            p == 0 ? packed_strip<V>(w_, row_ + s * V::kLanes, c.begin)
                   : source_.words[s] + done * source_.group_bytes;
        source_.scales[s] = source_.words[s] + kWordsOfGroup * 4 * V::kLanes;
      }
      if (p == 0) {
        source_.packed = true;
        source_.group_bytes =
            V::kLanes * size_t(packed_group_bytes(w_.format, w_.scale_dtype));
        source_.word_bytes = 4 * V::kLanes;
        source_.scale_bytes = source_.group_bytes;
      }
      return;
    }
    int32_t* words =
        reinterpret_cast<int32_t*>(memory_) + 2 * kPanelSteps * kStepWords;
    uint8_t* scales = reinterpret_cast<uint8_t*>(
        words + kFloatPanelColumns * T::kBits / 32 * kBfloatRows);
    ptrdiff_t ahead =
        bytes_of(c.end < w_.K ? kFloatPanelColumns
                              : kBfloatRows * w_.K - columns_.begin,
                 T::kBits);
    fill_panel<V, T::kBits>(w_, row_, c, ahead, words);
    size_t row_groups = w_.K / T::kGroup;
    for (int r = 0; r < kBfloatRows; ++r) {
      const uint8_t* from = w_.scales + strip_row(w_, row_ + r) * row_groups +
                            c.begin / T::kGroup;
      for (int g = 0; g < source_.groups; ++g) scales[g * kBfloatRows + r] = from[g];
    }
    source_.word_bytes = 4 * kBfloatRows;
    source_.group_bytes = kWordsOfGroup * source_.word_bytes;
    source_.scale_bytes = kBfloatRows;
    for (int s = 0; s < 2; ++s) {
      source_.words[s] =
          reinterpret_cast<const uint8_t*>(words + s * V::kLanes);
      source_.scales[s] = scales + s * V::kLanes;
    }
  }

  // Decodes step i of the open panel. Returns false if bfloat16 cannot express
  // it.
  [[gnu::always_inline]] static inline bool decode(const PanelSource& from,
                                                   int i,
                                                   int32_t* panel) {
    constexpr int kGroups = kStepColumns / T::kGroup;
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
        const uint8_t* words = from.words[s] + g * from.group_bytes;
        if (from.packed) {
#pragma GCC unroll 9
          for (int line = 0; line <= T::kGroup * T::kBits / 32; ++line) {
            __builtin_prefetch(words + V::kAhead + 64 * line);
          }
        }
        const uint8_t* scales = from.scales[s] + g * from.scale_bytes;
        fits &= T::template decode<V>(words, from.word_bytes, scales, to);
      }
    }
    return fits;
  }

  template <int kLefts, bool kDecodes>
  void pass(const LeftTiles& x,
            int p,
            int tile,
            bool first,
            bool loads,
            bool stores,
            float* sums) {
    constexpr size_t kSumBytes = kBfloatRows * sizeof(float);
    constexpr size_t kRowBytes = kRunCodes * sizeof(uint16_t);
    float* second = sums + size_t(x.tile_rows) * kBfloatRows;
    V::in_order();
    if (first) {
      V::template clear_tile<0, 0>();
      V::template clear_tile<0, 1>();
      if constexpr (kLefts == 2) {
        V::template clear_tile<1, 0>();
        V::template clear_tile<1, 1>();
      }
    } else if (loads) {
      V::template load_sums<0, 0>(sums, kSumBytes);
      V::template load_sums<0, 1>(sums + V::kLanes, kSumBytes);
      if constexpr (kLefts == 2) {
        V::template load_sums<1, 0>(second, kSumBytes);
        V::template load_sums<1, 1>(second + V::kLanes, kSumBytes);
      }
    }
    int column = columns(p).begin, count = steps(p);
    int next = kDecodes ? steps(p + 1) : 0;
    const int32_t* right = panel(p);
    int32_t* decoded = panel(p + 1);
    PanelSource from = source_;
    bool fits = true;
    const uint8_t* left = static_cast<const uint8_t*>(x.rows) +
                          size_t(tile) * x.tile_rows * kRowBytes;
    for (int i = 0; i < count; ++i, right += kStepWords) {
      int k = column + i * kStepColumns;
      const uint8_t* rows =
          left + k / kRunCodes * x.run_bytes + k % kRunCodes * sizeof(uint16_t);
      V::template load_rows<0>(rows, kRowBytes);
      V::template load_right<0>(right);
      V::template add_bfloats<0, 0>();
      V::template load_right<1>(right + kRightWords);
      V::template add_bfloats<0, 1>();
      if constexpr (kLefts == 2) {
        V::template load_rows<1>(rows + x.tile_rows * kRowBytes, kRowBytes);
        V::template add_bfloats<1, 0>();
        V::template add_bfloats<1, 1>();
      }
      if constexpr (kDecodes) {
        if (i < next) fits &= decode(from, i, decoded);
      }
    }
    fits_ &= fits;
    if (stores) {
      V::template store_sums<0, 0>(sums, kSumBytes);
      V::template store_sums<0, 1>(sums + V::kLanes, kSumBytes);
      if constexpr (kLefts == 2) {
        V::template store_sums<1, 0>(second, kSumBytes);
        V::template store_sums<1, 1>(second + V::kLanes, kSumBytes);
      }
    }
    V::in_order();
  }

  const Weights& w_;
  int row_;
  Range columns_;
  float* memory_;
  PanelSource source_{};
  bool fits_ = true;
};

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
  int size = size_of(dtype);
  int planes = M * kPlanes<A>;
  int tiles = (planes + kTileRows - 1) / kTileRows;
  int tile_rows = (planes + tiles - 1) / tiles;
  LeftTiles left{x.codes,
                 size_t(x.rows) * x.kStride<A> * sizeof(uint16_t),
                 tiles,
                 tile_rows};
  typename V::Tiles configured(tile_rows, kTileDepth);
  for (int n = rows.begin; n < rows.end; n += kBfloatRows) {
    bool fits = true;
    with_tiles(w.format, [&](auto form) {
      fits = FloatBlock<V, decltype(form)>(w, n, scratch).multiply(left, sums);
    });
    if (!fits) return n;
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
          smaller(rows.end - n, kBfloatRows),
          static_cast<uint8_t*>(y) + (static_cast<size_t>(m) * w.N + n) * size);
    }
  }
  return rows.end;
}

}  // namespace
}  // namespace nibble::cpu
