// x @ w_hat^T for few rows, weights as packed-inl.h lays them out.
//
// A lane is a weight row, so no sum goes across lanes. But results must have
// the bits of product-inl.h, whose lanes are places within a vector of the row.
// So there is a sum for each place, of kLanes weight rows, and at the end they
// are added as V::sum4 adds lanes. Several rows of x leave registers for some
// of the places only. Then a block, which is in the first-level cache, is read
// in several passes, each for other places. Each code is still decoded once.
// With more than kPackedTileRows rows, values are decoded into a panel that the
// first-level cache holds, and each place has its pass over it.
#pragma once

#include "csrc/cpu/packed-inl.h"

namespace nibble::cpu {
namespace {

// Rows of x in a register tile.
constexpr int kPackedTileRows = 3;

// The number of places whose sums are kept at a time, with kM rows of x: they
// take the registers of a tile of product-inl.h.
template <class V, int kM>
constexpr int places_at_a_time() {
  int places = V::kLanes;
  while (places * kM > 4 * V::kTileRows) places /= 2;
  return places;
}

// Adds the products of a panel word to `sum`, from code kCode on. The
// word is number kWord of those that make whole vectors of x. Only codes at
// places kPlace to kPlace + kPlaces have a part.
template <class V,
          class Q,
          int kPlace,
          int kWord,
          int kCode,
          int kPlaces,
          int kM>
[[gnu::always_inline]] inline void add_word(typename V::I word,
                                            const PackedParams<V, Q>& params,
                                            const float* x,
                                            size_t stride,
                                            typename V::F (&sum)[kPlaces][kM]) {
  constexpr int kCodes = kWordCodes<Q::kBits>;
  constexpr int kAt = kWord * kCodes + kCode;
  constexpr int kLane = V::template lane_of<Q::kBits>(kAt % V::kLanes);
  if constexpr (kLane >= kPlace && kLane < kPlace + kPlaces) {
    typename V::F decoded = weigh<V, Q>(
        V::template code<Q, kCode>(word), params.scale, params.bias);
    x += kAt / V::kLanes * V::kLanes + kLane;
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F& to = sum[kLane - kPlace][m];
      to = V::fma(decoded, V::set1(x[m * stride]), to);
    }
    x -= kAt / V::kLanes * V::kLanes + kLane;
  }
  if constexpr (kCode + 1 < kCodes) {
    add_word<V, Q, kPlace, kWord, kCode + 1>(word, params, x, stride, sum);
  }
}

// The fewest codes that are whole units and whole vectors of a row, and their
// bytes in a strip.
template <class V, class Q>
constexpr int kRun =
    kUnitCodes<Q::kBits> > V::kLanes ? kUnitCodes<Q::kBits> : V::kLanes;
template <class V, class Q>
constexpr int kRunBytes = kRun<V, Q> * Q::kBits / 8 * V::kLanes;

// Adds the products of the words, from kWord on, of a run.
template <class V, class Q, int kPlace, int kWord, int kPlaces, int kM>
[[gnu::always_inline]] inline void add_words(
    const uint8_t* p,
    const PackedParams<V, Q>& params,
    const float* x,
    size_t stride,
    typename V::F (&sum)[kPlaces][kM]) {
  typename V::I word = packed_word<V, Q::kBits, kWord>(p);
  add_word<V, Q, kPlace, kWord, 0>(word, params, x, stride, sum);
  if constexpr ((kWord + 1) * kWordCodes<Q::kBits> < kRun<V, Q>) {
    add_words<V, Q, kPlace, kWord + 1>(p, params, x, stride, sum);
  }
}

// places [kM, lanes] from kPlace on = the sum for each place over a block.
template <class V, class Q, int kM, int kPlace = 0>
void packed_places(const PackedBlock& block,
                   const Weights& w,
                   const float* x,
                   Pass<V> pass,
                   typename V::F (&places)[kM][V::kLanes]) {
  constexpr int kPlaces = places_at_a_time<V, kM>();
  int group_size = w.format.group_size;
  typename V::F sum[kPlaces][kM];
#pragma GCC unroll 16
  for (auto& place : sum) {
#pragma GCC unroll 8
    for (auto& s : place) s = V::zero();
  }
  constexpr int kPasses = V::kLanes / kPlaces;
  const Pass<V> part{pass.index * kPasses + kPlace / kPlaces,
                     pass.count * kPasses};
  const uint8_t* p = block.begin;
  const float* at = x + block.first * group_size;
  for (int g = 0; g < block.groups; ++g, p += block.group_bytes) {
    prefetch(part.ahead(block, g, p), block.group_bytes);
    PackedParams<V, Q> params(p + bytes_of(group_size, Q::kBits) * V::kLanes,
                              w.format,
                              w.scale_dtype);
    if constexpr (V::template kCodeUnit<Q> != 1) {
      params.scale = V::mul(params.scale, V::set1(V::template kCodeUnit<Q>));
    }
    const uint8_t* words = p;
    for (int k = 0; k < group_size; k += kRun<V, Q>) {
      add_words<V, Q, kPlace, 0>(words, params, at, w.K, sum);
      words += kRunBytes<V, Q>;
      at += kRun<V, Q>;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPlaces; ++i) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) places[m][kPlace + i] = sum[i][m];
  }
  if constexpr (kPlace + kPlaces < V::kLanes) {
    packed_places<V, Q, kM, kPlace + kPlaces>(block, w, x, pass, places);
  }
}

// Rows of x that meet a decoded vector at a time.
constexpr int kPanelTileRows = 8;
// Columns that are decoded at a time: with strips of 8 rows 8 KB of floats,
// which stay in the first-level cache with as many of 8 rows of x.
constexpr int kPanelColumns = 256;

// panel [run, lanes] = the values of a word of each lane, from code kCode on.
// The word is number kWord of those that make whole vectors of x.
template <class V, class Q, int kWord, int kCode>
[[gnu::always_inline]] inline void decode_word(typename V::I word,
                                               const PackedParams<V, Q>& params,
                                               float* panel) {
  constexpr int kCodes = kWordCodes<Q::kBits>;
  constexpr int kAt = kWord * kCodes + kCode;
  constexpr int kLane = V::template lane_of<Q::kBits>(kAt % V::kLanes);
  V::store(
      panel + (kAt / V::kLanes * V::kLanes + kLane) * V::kLanes,
      weigh<V, Q>(V::template code<Q, kCode>(word), params.scale, params.bias));
  if constexpr (kCode + 1 < kCodes) {
    decode_word<V, Q, kWord, kCode + 1>(word, params, panel);
  }
}

template <class V, class Q, int kWord>
[[gnu::always_inline]] inline void decode_words(
    const uint8_t* p, const PackedParams<V, Q>& params, float* panel) {
  decode_word<V, Q, kWord, 0>(
      packed_word<V, Q::kBits, kWord>(p), params, panel);
  if constexpr ((kWord + 1) * kWordCodes<Q::kBits> < kRun<V, Q>) {
    decode_words<V, Q, kWord + 1>(p, params, panel);
  }
}

// out [M, lanes] += the products of a block and M rows of x. Its
// values are decoded once for all rows, a part of the columns after the other.
// The sums for each place are those of packed_places, in the same order.
template <class V, class Q>
void packed_panel(const PackedBlock& block,
                  const Weights& w,
                  const float* x,
                  int M,
                  float* out) {
  alignas(64) float panel[kPanelColumns * V::kLanes];
  alignas(64) float places[kMostPackedRows * V::kLanes * V::kLanes];
  for (int i = 0; i < M * V::kLanes * V::kLanes; ++i) places[i] = 0;
  int group_size = w.format.group_size, count = block.groups * group_size;
  const uint8_t* p = block.begin;
  for (int k = 0; k < count; k += kPanelColumns) {
    int columns = smaller(kPanelColumns, count - k);
    for (int i = 0; i < columns; i += group_size, p += block.group_bytes) {
      prefetch(Pass<V>{0, 1}.ahead(block, 0, p), block.group_bytes);
      PackedParams<V, Q> params(p + bytes_of(group_size, Q::kBits) * V::kLanes,
                                w.format,
                                w.scale_dtype);
      if constexpr (V::template kCodeUnit<Q> != 1) {
        params.scale = V::mul(params.scale, V::set1(V::template kCodeUnit<Q>));
      }
      const uint8_t* words = p;
      for (int j = 0; j < group_size; j += kRun<V, Q>) {
        decode_words<V, Q, 0>(words, params, panel + (i + j) * V::kLanes);
        words += kRunBytes<V, Q>;
      }
    }
    by_tiles<V, kPanelTileRows>(M, [&](auto rows, int m, Pass<V>) {
      constexpr int kM = decltype(rows)::value;
      constexpr int kApart = V::kLanes * V::kLanes;
      const float* tile =
          x + static_cast<size_t>(m) * w.K + block.first * group_size + k;
      for (int place = 0; place < V::kLanes; ++place) {
        const float* at = tile + place;
        const float* decoded = panel + place * V::kLanes;
        float* sums = places + (m * V::kLanes + place) * V::kLanes;
        typename V::F sum[kM];
#pragma GCC unroll 8
        for (int r = 0; r < kM; ++r) sum[r] = V::load(sums + r * kApart);
        for (int i = place; i < columns; i += V::kLanes) {
          typename V::F values = V::load(decoded);
#pragma GCC unroll 8
          for (int r = 0; r < kM; ++r) {
            sum[r] = V::fma(
                values, V::set1(at[static_cast<size_t>(r) * w.K]), sum[r]);
          }
          decoded += V::kLanes * V::kLanes;
          at += V::kLanes;
        }
#pragma GCC unroll 8
        for (int r = 0; r < kM; ++r) V::store(sums + r * kApart, sum[r]);
      }
    });
  }
  for (int m = 0; m < M; ++m) {
    typename V::F each[V::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) {
      each[i] = V::load(places + (m * V::kLanes + i) * V::kLanes);
    }
    float* to = out + m * V::kLanes;
    V::store(to, V::add(V::load(to), V::sum_across(each)));
  }
}

template <class V>
void multiply_packed(const Weights& w,
                     const float* x,
                     int M,
                     Range rows,
                     Dtype dtype,
                     void* y,
                     float* scratch) {
  float* sums = scratch + kPanelFloats;
  with_codes(w.format, [&](auto codes) {
    using Q = decltype(codes);
    if constexpr (Q::kIntegers) {
      by_packed_strips<V, 1>(
          w,
          M,
          rows,
          kBlockK,
          dtype,
          y,
          sums,
          [&](auto, const PackedBlock& block, float* out) {
            if (M > kPackedTileRows) {
              packed_panel<V, Q>(block, w, x, M, out);
              return;
            }
            by_tiles<V, kPackedTileRows>(
                M, [&](auto rows, int m, Pass<V> part) {
                  constexpr int kM = decltype(rows)::value;
                  typename V::F places[kM][V::kLanes];
                  packed_places<V, Q, kM>(
                      block, w, x + static_cast<size_t>(m) * w.K, part, places);
                  for (int i = 0; i < kM; ++i) {
                    float* to = out + (m + i) * V::kLanes;
                    V::store(to, V::add(V::load(to), V::sum_across(places[i])));
                  }
                });
          });
    }
  });
}

}  // namespace
}  // namespace nibble::cpu
