// x @ w_hat^T for few rows, weights as packed-inl.h lays them out.
//
// A lane is a weight row, so sums need no adding up across lanes. But results
// are to have the bits that product-inl.h gives them, whose lanes are places
// within a vector of the row: so there is a sum for each place, of kLanes
// weight rows, and in the end they are added as V::sum4 adds lanes. More rows
// of x than one take registers from places: then a block, in the first-level
// cache by now, is read once for some of the places and again for others. Each
// code is decoded once all the same.
#pragma once

#include "csrc/cpu/packed-inl.h"

namespace nibble::cpu {
namespace {

// Most rows of x for which this is faster than product-inl.h: there one decoded
// vector meets all rows, here one more multiplication decodes each (4096 x 4096
// from the cache, two cores of a Zen 5, in ms: one row 0.15 against 0.22, two
// 0.22 against 0.28, four 0.43 against 0.40).
constexpr int kPackedRows = 3;

// Places whose sums are kept at a time, with kM rows of x: as many registers as
// a tile of product-inl.h takes.
template <class V, int kM>
constexpr int places_at_a_time() {
  int places = V::kLanes;
  while (places * kM > 4 * V::kTileRows) places /= 2;
  return places;
}

// Adds the products of the codes from kCode on of one word a lane, word number
// kWord of some vectors of x, as far as their places are among those that sum
// [places, kM] is of, which begin with kPlace.
template <class V,
          int kBits,
          int kPlace,
          int kWord,
          int kCode,
          int kPlaces,
          int kM>
[[gnu::always_inline]] inline void add_word(typename V::I word,
                                            const PackedParams<V>& params,
                                            const float* x,
                                            size_t stride,
                                            typename V::F (&sum)[kPlaces][kM]) {
  constexpr int kCodes = 32 / kBits;
  constexpr int kAt = kWord * kCodes + kCode;
  constexpr int kLane = V::template lane_of<kBits>(kAt % V::kLanes);
  if constexpr (kLane >= kPlace && kLane < kPlace + kPlaces) {
    typename V::F decoded =
        V::fma(V::template code<kBits, kCode>(word), params.scale, params.bias);
    x += kAt / V::kLanes * V::kLanes + kLane;
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F& to = sum[kLane - kPlace][m];
      to = V::fma(decoded, V::set1(x[m * stride]), to);
    }
    x -= kAt / V::kLanes * V::kLanes + kLane;
  }
  if constexpr (kCode + 1 < kCodes) {
    add_word<V, kBits, kPlace, kWord, kCode + 1>(word, params, x, stride, sum);
  }
}

// Adds the products of the words from kWord on of whole vectors.
template <class V, int kBits, int kPlace, int kWord, int kPlaces, int kM>
[[gnu::always_inline]] inline void add_words(
    const uint8_t* p,
    const PackedParams<V>& params,
    const float* x,
    size_t stride,
    typename V::F (&sum)[kPlaces][kM]) {
  constexpr int kCodes = 32 / kBits;
  typename V::I word =
      V::int_load(reinterpret_cast<const int32_t*>(p) + kWord * V::kLanes);
  add_word<V, kBits, kPlace, kWord, 0>(word, params, x, stride, sum);
  if constexpr ((kWord + 1) * kCodes < V::kLanes) {
    add_words<V, kBits, kPlace, kWord + 1>(p, params, x, stride, sum);
  }
}

// places [kM, lanes] from kPlace on = the sums of each place over a block.
template <class V, int kBits, int kM, int kPlace = 0>
void packed_places(const PackedBlock& block,
                   const Weights& w,
                   const float* x,
                   Share share,
                   typename V::F (&places)[kM][V::kLanes]) {
  constexpr int kPlaces = places_at_a_time<V, kM>();
  // Codes of whole words that are whole vectors of a row.
  constexpr int kRun = 32 / kBits > V::kLanes ? 32 / kBits : V::kLanes;
  constexpr int kRunBytes = kRun * kBits / 8 * V::kLanes;
  int group_size = w.format.group_size;
  typename V::F sum[kPlaces][kM];
#pragma GCC unroll 16
  for (auto& place : sum) {
#pragma GCC unroll 8
    for (auto& s : place) s = V::zero();
  }
  constexpr int kPasses = V::kLanes / kPlaces;
  const Share part{share.index * kPasses + kPlace / kPlaces,
                   share.count * kPasses};
  const uint8_t* p = block.begin;
  const float* at = x + block.first * group_size;
  for (int g = 0; g < block.groups; ++g, p += block.group_bytes) {
    prefetch(part.ahead(block, g, p), block.group_bytes);
    PackedParams<V> params(
        p + bytes_of(group_size, kBits) * V::kLanes, w.format, w.scale_dtype);
    const uint8_t* words = p;
    for (int k = 0; k < group_size; k += kRun) {
      add_words<V, kBits, kPlace, 0>(words, params, at, w.K, sum);
      words += kRunBytes;
      at += kRun;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kPlaces; ++i) {
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) places[m][kPlace + i] = sum[i][m];
  }
  if constexpr (kPlace + kPlaces < V::kLanes) {
    packed_places<V, kBits, kM, kPlace + kPlaces>(block, w, x, share, places);
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
  with_bits(w.format.bits, [&](auto b) {
    constexpr int kBits = decltype(b)::value;
    if constexpr (lie_in_bytes(kBits)) {
      by_packed_strips<V, 1>(
          w,
          M,
          rows,
          kBlockK,
          dtype,
          y,
          sums,
          [&](auto, const PackedBlock& block, float* out) {
            by_tiles<kPackedRows>(M, [&](auto rows, int m, Share part) {
              constexpr int kM = decltype(rows)::value;
              typename V::F places[kM][V::kLanes];
              packed_places<V, kBits, kM>(
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
