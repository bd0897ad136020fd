// x @ w_hat^T for one row of integer activations, without a panel.
//
// Lanes run over k. A strip has as many weight rows as there are lanes. Each
// row gives a vector of partial sums, and these are folded until a lane holds
// a row's sum over one group. Sums inside a group are integers, and groups are
// added as in integers-inl.h, so results have the same bits.
#pragma once

#include "csrc/cpu/integers_dots-inl.h"
#include "csrc/cpu/integers_params-inl.h"

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

// out = a plane of the first row of x in the order of a row's vectors. Part p
// of a vector has the activations that meet code number p of its bytes. Vectors
// are whole; values beyond K are undefined.
template <class V, class A, int kBits>
void to_vector_order(const QuantizedRows& x, int plane, int K, Code<A>* out) {
  constexpr int kCount = kParts<A, kBits>;
  constexpr int kEach = kPartCodes<A>;
  constexpr int kCodes = kVectorCodes<V, kBits>;
  for (int k = 0; k < K; k += kCodes) {
    int words = smaller(K - k, kCodes) / (kEach * kCount);
    for (int d = 0; d < words; ++d) {
      for (int p = 0; p < kCount; ++p) {
        __builtin_memcpy(
            out + k + kEach * (p * V::kLanes + d),
            x.at<A>(0, k + kEach * (d * kCount + p)) + plane * kRunCodes,
            4);
      }
    }
  }
}

// Returns sum + the products of the codes in `bytes` and one plane of
// activations in vector order.
template <class V, class Q, class A, int kPart = 0>
[[gnu::always_inline]] inline typename V::I add_vector(
    typename V::I bytes,
    const typename V::I (&x)[kParts<A, Q::kBits>],
    typename V::I sum) {
  sum = add_dots<V, Q, A>(sum, part_of<V, Q, A, kPart>(bytes), x[kPart]);
  if constexpr (kPart + 1 < kParts<A, Q::kBits>) {
    sum = add_vector<V, Q, A, kPart + 1>(bytes, x, sum);
  }
  return sum;
}

// Returns sum + the products of a strip of rows and x, in vector order, over
// columns that begin with a vector. The same code of the next strip is `ahead`
// bytes away and is prefetched: hardware does not follow this number of rows
// with parameters between them (cold 0.3 ms, without prefetches 0.6 to 1.0).
template <class V, class Q, class A, int kGroup>
typename V::F add_strip(const uint8_t* const (&rows)[V::kLanes],
                        const StripParams<V, Q, V::kLanes>& params,
                        Range columns,
                        ptrdiff_t ahead,
                        const Code<A>* x,
                        size_t plane_stride,
                        const QuantizedRows& row,
                        typename V::F sum) {
  constexpr int kBits = Q::kBits;
  constexpr int kCodes = kVectorCodes<V, kBits>;
  constexpr int kSpan = kGroup >= kCodes ? V::kLanes : kGroup * kBits / 32;
  constexpr int kVectors = kGroup >= kCodes ? kGroup / kCodes : 1;
  int groups = (columns.end - columns.begin) / kGroup;
  for (int g = 0, k = columns.begin; g < groups;) {
    typename V::I a[kPlanes<A>][kVectors][kParts<A, kBits>];
#pragma GCC unroll 2
    for (int plane = 0; plane < kPlanes<A>; ++plane) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 4
        for (int p = 0; p < kParts<A, kBits>; ++p) {
          a[plane][v][p] = V::int_load(reinterpret_cast<const int32_t*>(
              x + plane * plane_stride + k + v * kCodes +
              kPartCodes<A> * p * V::kLanes));
        }
      }
    }
    int words = smaller(columns.end - k, kCodes) * kBits / 32;
    size_t at = bytes_of(k, kBits);
    auto partial = [&](int row) __attribute__((always_inline)) {
      typename V::I dots[kPlanes<A>];
      for (auto& plane : dots) plane = V::int_zero();
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* p = rows[row] + at + v * 4 * V::kLanes;
        __builtin_prefetch(p + ahead);
        typename V::I bytes = V::load_words(p, words);
#pragma GCC unroll 2
        for (int plane = 0; plane < kPlanes<A>; ++plane) {
          dots[plane] = add_vector<V, Q, A>(bytes, a[plane][v], dots[plane]);
        }
      }
      return join<V, A>(dots[0], dots[kPlanes<A> - 1]);
    };
    auto folded = fold<V, V::kLanes, kSpan>(partial, 0);
    for (int s = 0; s < folded.kCount && g < groups; ++s, ++g) {
      size_t at = row.group(0, columns.begin / kGroup + g);
      sum = add_group<V, Q>(folded.sums[s],
                            V::load(params.scale[g]),
                            params.biases(g, 0),
                            V::set1(row.scales[at]),
                            row.sums + at,
                            sum);
    }
    k += kVectors * kCodes;
  }
  return sum;
}

// For one row of x. Codes lie in bytes, and K of them fit into the scratch.
template <class V, class Q, class A, int kGroup>
void multiply_row(const Weights& w,
                  const QuantizedRows& x,
                  Range rows,
                  Dtype dtype,
                  void* y,
                  float* scratch) {
  constexpr int kBits = Q::kBits;
  auto codes = reinterpret_cast<Code<A>*>(scratch);
  // Vectors are whole.
  size_t plane_stride =
      (w.K + kVectorCodes<V, kBits> - 1) & -size_t{kVectorCodes<V, kBits>};
  for (int plane = 0; plane < kPlanes<A>; ++plane) {
    to_vector_order<V, A, kBits>(x, plane, w.K, codes + plane * plane_stride);
  }
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
      sum = add_strip<V, Q, A, kGroup>(strip,
                                       params,
                                       columns,
                                       V::kLanes * stride,
                                       codes,
                                       plane_stride,
                                       x,
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
