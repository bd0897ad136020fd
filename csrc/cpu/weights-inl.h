// Reading weights: decoding rows, and rounding results to 16-bit floats.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/params-inl.h"

namespace nibble::cpu {
namespace {

template <class V, Dtype kDtype>
void round_floats(const float* v, int count, uint8_t* out) {
  constexpr int kSize = size_of(kDtype);
  int i = 0;
  for (; i + V::kLanes <= count; i += V::kLanes) {
    V::template store_rounded<kDtype>(out + i * kSize, V::load(v + i));
  }
  if (i < count) {  // v has room for whole vectors
    V::template store_rounded<kDtype>(
        out + i * kSize, V::load(v + i), count - i);
  }
}

template <class V>
void round_floats(Dtype dtype, const float* v, int count, uint8_t* out) {
  with_dtype(dtype, [&](auto d) {
    round_floats<V, decltype(d)::value>(v, count, out);
  });
}

// Prefetches the `count` bytes at p.
inline void prefetch(const uint8_t* p, int count) {
  constexpr int kCacheLine = 64;
  for (int i = 0; i < count; i += kCacheLine) __builtin_prefetch(p + i);
}

// The scales and biases of kRows weight rows between two columns, as fp32.
template <class V, class Q, int kRows>
struct GroupParams {
  alignas(64) float scale[kRows][kMostGroups];
  alignas(64) float bias[kRows][kMostGroups];

  GroupParams(const Weights& w, int row, Range columns) {
    with_scale_dtype<Q>(w.scale_dtype, [&](auto dtype) {
      for (int r = 0; r < kRows; ++r) {
        read_params<V, Q, decltype(dtype)::value>(
            w, row + r, columns, scale[r], bias[r]);
      }
    });
  }

  // Group g of row r, for decode().
  typename V::template Group<Q> group(int r, int g) const {
    return V::template group<Q>(scale[r][g], Q::kBiased ? bias[r][g] : 0);
  }
};

// True if kRows rows of E4M3 codes are regular (codes-inl.h) between two
// columns. Their scales are E8M0.
template <class V, int kRows>
bool are_regular(const Weights& w, int row, Range columns) {
  constexpr int kInfinite = 255;
  if (!V::reads_subnormals()) return false;
  int count = columns.end - columns.begin, group_size = w.format.group_size;
  int groups = count / group_size;
  const uint8_t* codes =
      w.codes + static_cast<size_t>(row) * w.K + columns.begin;
  const uint8_t* scales = w.scales +
                          static_cast<size_t>(row) * (w.K / group_size) +
                          columns.begin / group_size;
  uint8_t strange = 0;
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < count; ++k) {
      strange |= static_cast<uint8_t>((codes[k] | 0x80) == 0xff);
    }
    for (int g = 0; g < groups; ++g) {
      strange |= static_cast<uint8_t>(scales[g] >= V::kFirstHugeScale &&
                                      scales[g] < kInfinite);
    }
    codes += w.K;
    scales += w.K / group_size;
  }
  return strange == 0;
}

// True for codes that may turn out to be regular.
template <class V, class Q>
constexpr bool may_be_regular() {
  if constexpr (V::kDecodesRegular && !Q::kIntegers) {
    return !Q::kIsRegular;
  } else {
    return false;
  }
}

inline size_t bytes_of(int codes, int bits) {
  return static_cast<size_t>(codes) * bits / 8;
}

// Calls tile(Int<R>, row) for all rows, R at a time and then one at a time.
template <int kR, typename Fn>
void by_rows(int count, Fn&& tile) {
  int r = 0;
  for (; r + kR <= count; r += kR) tile(Int<kR>{}, r);
  for (; r < count; ++r) tile(Int<1>{}, r);
}

// out[r, columns] = w_hat[row + r, columns] for r < kR, in code order; rows
// of `out` are out_stride apart.
template <class V, class Q, int kR>
void decode_rows(
    const Weights& w, int row, Range columns, float* out, int out_stride) {
  if constexpr (may_be_regular<V, Q>()) {
    if (are_regular<V, kR>(w, row, columns)) {
      return decode_rows<V, E4m3Codes<true>, kR>(
          w, row, columns, out, out_stride);
    }
  }
  GroupParams<V, Q, kR> params(w, row, columns);
  size_t stride = bytes_of(w.K, Q::kBits);
  const uint8_t* codes =
      w.codes + row * stride + bytes_of(columns.begin, Q::kBits);
  int group_size = w.format.group_size;
  int groups = (columns.end - columns.begin) / group_size;
  for (int r = 0; r < kR; ++r, codes += stride, out += out_stride) {
    const uint8_t* p = codes;
    float* to = out;
    for (int g = 0; g < groups; ++g) {
      auto group = params.group(r, g);
      for (int k = 0; k < group_size; k += Q::kUnit) {
#pragma GCC unroll 8
        for (int i = 0; i < Q::kUnit; i += V::kLanes) {
          V::store(to, V::template decode<Q>(p, group));
          to += V::kLanes;
          p += bytes_of(V::kLanes, Q::kBits);
        }
      }
    }
  }
}

template <class V, int kBits>
void to_natural_order(float* v, int count) {
  if constexpr (!V::template kNatural<kBits>) {
    for (int i = 0; i < count; i += V::kLanes) {
      V::store(v + i, V::template to_natural_order<kBits>(V::load(v + i)));
    }
  }
}

}  // namespace
}  // namespace nibble::cpu
