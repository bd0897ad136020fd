// x @ w_hat^T for one row of 8-bit activations, without a panel.
//
// Lanes run over k. A strip has as many weight rows as there are lanes. Each
// row gives a vector of partial sums, and these are folded until a lane holds
// a row's sum over one group. Sums inside a group are integers, and groups are
// added as in int8-inl.h, so results have the same bits.
#pragma once

#include "csrc/cpu/int8_params-inl.h"

namespace nibble::cpu {
namespace {

// The number of codes in a vector of a row's bytes.
template <class V, int kBits>
constexpr int kVectorCodes = V::kLanes * 32 / kBits;

// The sums of each row over each segment of a vector, kSpan lanes wide. Lane r
// of sums[s] is that of row r.
template <class V, int kRows, int kSpan>
struct Folded {
  static constexpr int kCount = kRows <= kSpan ? 1 : kRows / kSpan;
  typename V::I sums[kCount];
};

// Returns the sums of rows `first` to first + kRows, whose partial sums are
// partial(row). It recurses first, so that few of them are live at a time.
template <class V, int kRows, int kSpan, typename Partial>
[[gnu::always_inline]] inline Folded<V, kRows, kSpan> fold(Partial&& partial,
                                                           int first) {
  if constexpr (kRows == 1) {
    return {{partial(first)}};
  } else {
    constexpr int kHalf = kRows / 2;
    auto a = fold<V, kHalf, kSpan>(partial, first);
    auto b = fold<V, kHalf, kSpan>(partial, first + kHalf);
    Folded<V, kRows, kSpan> out;
    for (int i = 0; i < a.kCount; ++i) {
      typename V::I even = V::template even_blocks<kHalf>(a.sums[i], b.sums[i]);
      typename V::I odd = V::template odd_blocks<kHalf>(a.sums[i], b.sums[i]);
      if constexpr (kHalf < kSpan) {
        out.sums[i] = V::int_add(even, odd);
      } else {
        out.sums[i] = even;
        out.sums[i + a.kCount] = odd;
      }
    }
    return out;
  }
}

// out = codes [K] in the order of a row's vectors. Part p of a vector has the
// activations that meet code number p of its bytes. Vectors are whole; values
// beyond K are undefined.
template <class V, int kBits>
void to_vector_order(const int8_t* codes, int K, int8_t* out) {
  constexpr int kParts = 8 / kBits;
  constexpr int kCodes = kVectorCodes<V, kBits>;
  for (int k = 0; k < K; k += kCodes) {
    int words = smaller(K - k, kCodes) / (4 * kParts);
    for (int d = 0; d < words; ++d) {
      for (int p = 0; p < kParts; ++p) {
        __builtin_memcpy(out + k + 4 * (p * V::kLanes + d),
                         codes + k + 4 * (d * kParts + p),
                         4);
      }
    }
  }
}

// Returns sum + the products of the codes in `bytes` and activations in vector
// order.
template <class V, class Q, int kPart = 0>
[[gnu::always_inline]] inline typename V::I add_vector(
    typename V::I bytes,
    const typename V::I (&x)[8 / Q::kBits],
    typename V::I sum) {
  typename V::I codes =
      Q::template bytes<V>(V::template byte_codes<Q::kBits, kPart>(bytes));
  sum = V::template dot4<Q::kByteBits>(sum, codes, x[kPart]);
  if constexpr ((kPart + 1) * Q::kBits < 8) {
    sum = add_vector<V, Q, kPart + 1>(bytes, x, sum);
  }
  return sum;
}

// Returns sum + the products of a strip of rows and x, in vector order, over
// columns that begin with a vector. The same code of the next strip is `ahead`
// bytes away and is prefetched: hardware does not follow this number of rows
// with parameters between them (cold 0.3 ms, without prefetches 0.6 to 1.0).
template <class V, class Q, int kGroup>
typename V::F add_strip(const uint8_t* const (&rows)[V::kLanes],
                        const StripParams<V, Q, V::kLanes>& params,
                        Range columns,
                        ptrdiff_t ahead,
                        const int8_t* x,
                        const float* x_scales,
                        const float* x_sums,
                        typename V::F sum) {
  constexpr int kBits = Q::kBits;
  constexpr int kCodes = kVectorCodes<V, kBits>;
  constexpr int kSpan = kGroup >= kCodes ? V::kLanes : kGroup * kBits / 32;
  constexpr int kVectors = kGroup >= kCodes ? kGroup / kCodes : 1;
  int groups = (columns.end - columns.begin) / kGroup;
  for (int g = 0, k = columns.begin; g < groups;) {
    typename V::I a[kVectors][8 / kBits];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
      for (int p = 0; p < 8 / kBits; ++p) {
        a[v][p] = V::int_load(reinterpret_cast<const int32_t*>(
            x + k + v * kCodes + 4 * p * V::kLanes));
      }
    }
    int words = smaller(columns.end - k, kCodes) * kBits / 32;
    size_t at = bytes_of(k, kBits);
    auto partial = [&](int row) __attribute__((always_inline)) {
      typename V::I dots = V::int_zero();
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = rows[row] + at + v * 4 * V::kLanes;
        __builtin_prefetch(p + ahead);
        dots = add_vector<V, Q>(V::load_words(p, words), a[v], dots);
      }
      return dots;
    };
    auto folded = fold<V, V::kLanes, kSpan>(partial, 0);
    for (int s = 0; s < folded.kCount && g < groups; ++s, ++g) {
      sum = add_group<V, Q>(folded.sums[s],
                            V::load(params.scale[g]),
                            params.biases(g, 0),
                            V::set1(x_scales[g]),
                            V::set1(x_sums[g]),
                            sum);
    }
    k += kVectors * kCodes;
  }
  return sum;
}

// For one row of x. Codes lie in bytes, and K of them fit into the scratch.
template <class V, class Q, int kGroup>
void multiply_row(const Weights& w,
                  const QuantizedRows& x,
                  Range rows,
                  Dtype dtype,
                  void* y,
                  float* scratch) {
  constexpr int kBits = Q::kBits;
  int8_t* codes = reinterpret_cast<int8_t*>(scratch);
  to_vector_order<V, kBits>(x.codes, w.K, codes);
  size_t stride = bytes_of(w.K, kBits);
  int size = dtype == Dtype::kFloat32 ? 4 : 2;
  for (int n = rows.begin; n < rows.end; n += V::kLanes) {
    const uint8_t* strip[V::kLanes];
    for (int r = 0; r < V::kLanes; ++r) {
      strip[r] = w.codes + strip_row(w, n + r) * stride;
    }
    typename V::F sum = V::zero();
    for (int k = w.columns.begin; k < w.columns.end; k += kIntBlockK) {
      Range columns{k, smaller(k + kIntBlockK, w.columns.end)};
      StripParams<V, Q, V::kLanes> params(w, n, columns);
      sum = add_strip<V, Q, kGroup>(strip,
                                    params,
                                    columns,
                                    V::kLanes * stride,
                                    codes,
                                    x.scales + k / kGroup,
                                    x.sums + k / kGroup,
                                    sum);
    }
    alignas(64) float out[V::kLanes];
    V::store(out, sum);
    round_floats<V>(dtype,
                    out,
                    smaller(rows.end - n, V::kLanes),
                    static_cast<uint8_t*>(y) + static_cast<size_t>(n) * size);
  }
}

}  // namespace
}  // namespace nibble::cpu
