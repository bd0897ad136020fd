// x @ w_hat^T with activations rounded to integers, weights in the layout of
// packed-inl.h. The computation is that of integers-inl.h with a panel, but
// nothing has to be transposed.
#pragma once

#include "csrc/cpu/integers_dots-inl.h"
#include "csrc/cpu/integers_params-inl.h"
#include "csrc/cpu/packed-inl.h"

namespace nibble::cpu {
namespace {

// sums [kM, kStrips x lanes] += the products of a block of columns.
template <class V, class Q, class A, int kStrips, int kM>
void packed_int_tile(const PackedBlock& block,
                     const Weights& w,
                     const QuantizedRows& x,
                     int m,
                     Pass<V> pass,
                     float* sums) {
  constexpr int kBits = Q::kBits;
  constexpr int kRows = kStrips * V::kLanes;
  // A sum of one word has to wait for the sum of the word before. If there are
  // few sums, every other word has its own.
  constexpr int kChains = kStrips * kM * kPlanes<A> <= 4 ? 2 : 1;
  constexpr int kUnits = kUnitWords<kBits> == 1 ? kChains : 1;
  constexpr int kStored = kUnits * kUnitStored<kBits>;
  int group_size = w.format.group_size;
  int words = group_size * kBits / 32;
  typename V::F sum[kStrips][kM];
#pragma GCC unroll 4
  for (int s = 0; s < kStrips; ++s) {
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      sum[s][i] = V::load(sums + i * kRows + s * V::kLanes);
    }
  }
  const uint8_t* p = block.begin;
  for (int g = 0; g < block.groups; ++g) {
    DotSums<V, A, kStrips, kM> dots[kChains];
#pragma GCC unroll 2
    for (auto& chain : dots) clear<V, A, kStrips, kM>(chain);
    const uint8_t* ahead = pass.ahead(block, g, p);
    const Code<A>* codes = x.at<A>(m, (block.first + g) * group_size);
    for (int d = 0; d < words; d += kStored) {
      each_int<kUnits * kUnitWords<kBits>>(
          [&](auto number) __attribute__((always_inline)) {
            constexpr int kWord = decltype(number)::value;
            typename V::I word[kStrips];
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s) {
              size_t at = s * block.strip_bytes + 4 * V::kLanes * d;
              word[s] = packed_word<V, kBits, kWord>(p + at);
              if constexpr (kWord < kStored) {
                __builtin_prefetch(ahead + at + 4 * V::kLanes * kWord);
              }
            }
            add_part<V, Q, A, 0>(word, codes, dots[kWord % kChains]);
            codes += kWordCodes<kBits>;
          });
    }
    size_t at = x.group(m, block.first + g);
#pragma GCC unroll 4
    for (int s = 0; s < kStrips; ++s) {
      size_t byte = s * block.strip_bytes + 4 * V::kLanes * words;
      PackedParams<V, Q> params(p + byte, w.format, w.scale_dtype);
      __builtin_prefetch(ahead + byte);
#pragma GCC unroll 8
      for (int i = 0; i < kM; ++i) {
        auto of = [&](int plane) __attribute__((always_inline)) {
          typename V::I dot = dots[0][plane][s][i];
          return kChains == 2 ? V::int_add(dot, dots[1][plane][s][i]) : dot;
        };
        typename V::I dot = join<V, A>(of(0), of(kPlanes<A> - 1));
        sum[s][i] = add_group<V, Q>(dot,
                                    params.scale,
                                    params.bias,
                                    V::set1(x.scales[at + i]),
                                    x.sums + at + i,
                                    sum[s][i]);
      }
    }
    p += block.group_bytes;
  }
#pragma GCC unroll 4
  for (int s = 0; s < kStrips; ++s) {
#pragma GCC unroll 8
    for (int i = 0; i < kM; ++i) {
      V::store(sums + i * kRows + s * V::kLanes, sum[s][i]);
    }
  }
}

template <class V, class A>
void multiply_packed_integers(const Weights& w,
                              const QuantizedRows& x,
                              int M,
                              Range rows,
                              Dtype dtype,
                              void* y,
                              float* scratch) {
  float* sums = scratch + kPanelFloats;
  auto with_strips = [&](auto strips, auto most_rows, auto codes) {
    using Q = decltype(codes);
    by_packed_strips<V, decltype(strips)::value>(
        w,
        M,
        rows,
        kIntBlockK,
        dtype,
        y,
        sums,
        [&](auto count, const PackedBlock& block, float* out) {
          constexpr int kCount = decltype(count)::value;
          by_tiles<V, decltype(most_rows)::value>(
              M, [&](auto tile_rows, int m, Pass<V> pass) {
                packed_int_tile<V, Q, A, kCount, decltype(tile_rows)::value>(
                    block, w, x, m, pass, out + m * kCount * V::kLanes);
              });
        });
  };
  with_integers(w.format, [&](auto codes) {
    // One row is read at the speed of memory.
    M == 1 ? with_strips(Int<V::kRowStreams>{}, Int<1>{}, codes)
           : with_strips(Int<V::kStrips>{}, Int<V::kIntTileRows>{}, codes);
  });
}

}  // namespace
}  // namespace nibble::cpu
