// Weights laid out anew, so that few rows of x meet them in the order in which
// they lie: one stream of memory for a thread, no scales to look up elsewhere,
// no sums across lanes.
//
// A strip is as many weight rows as a vector has lanes; lane r is row r. Strips
// follow each other, and in each its groups of codes:
//
//     word 0     w[0, 0:8]    w[1, 0:8]  ..   32 bits a lane: 4-bit codes are 8
//     word 1     w[0, 8:16]   w[1, 8:16] ..
//     ..
//     scales     s[0]         s[1]       ..   as the checkpoint has them
//     biases     b[0]         b[1]       ..   but of a symmetric format
//
// Rows that the last strip lacks are zero. Integer products read words as
// int8-inl.h reads its panels. Products of floats keep a sum for each place
// within a vector of the row as it lay, and add these as V::sum4 adds lanes.
// Either way, results have the bits that they have without this layout.
#pragma once

#include "csrc/cpu/int8_params-inl.h"
#include "csrc/cpu/int8_rows-inl.h"

namespace nibble::cpu {
namespace {

// How far ahead a stream is asked for. A thread's prefetcher follows one stream
// by itself, but no further than a page of 4 KB: one row of 4096 x 4096 cold
// takes 0.112 ms with, 0.126 ms without (two cores of a Zen 5).
constexpr int kAhead = 8 * 1024;

// Bytes of a row's share of one group.
constexpr int packed_group_bytes(QuantFormat format, Dtype scale_dtype) {
  int params = format.group_arrays() * size_of(scale_dtype);
  return format.group_size * format.bits / 8 + params;
}

// Of a row; 0 of a format whose codes do not lie in bytes, which is read where
// it lies.
inline size_t packed_row_bytes(QuantFormat format, Dtype scale_dtype, int K) {
  return lie_in_bytes(format.bits)
             ? static_cast<size_t>(K / format.group_size) *
                   packed_group_bytes(format, scale_dtype)
             : 0;
}

// out = the strips that hold `rows`, the first of which begins one.
template <class V>
void pack(const Weights& w, Range rows, uint8_t* out) {
  int group_size = w.format.group_size, size = size_of(w.scale_dtype);
  int words = group_size * w.format.bits / 32;
  int groups = w.K / group_size;
  size_t row_bytes = bytes_of(w.K, w.format.bits);
  // out = the next lanes, of `bytes` each, at row n's `at` in `from`.
  auto put = [&](int n, const uint8_t* from, size_t stride, int bytes) {
    for (int r = 0; r < V::kLanes; ++r, out += bytes) {
      if (n + r < w.N) {
        __builtin_memcpy(out, from + (n + r) * stride, bytes);
      } else {
        __builtin_memset(out, 0, bytes);
      }
    }
  };
  for (int n = rows.begin; n < rows.end; n += V::kLanes) {
    for (int g = 0; g < groups; ++g) {
      for (int d = 0; d < words; ++d) {
        put(n, w.codes + 4 * (g * words + d), row_bytes, 4);
      }
      size_t stride = static_cast<size_t>(groups) * size;
      put(n, w.scales + g * size, stride, size);
      if (w.format.has_biases()) put(n, w.biases + g * size, stride, size);
    }
  }
}

// One block of columns of a strip, and of those that follow it.
struct PackedBlock {
  const uint8_t* begin;
  const uint8_t* end;  // of the thread's share: nothing beyond is asked for
  size_t strip_bytes;
  int group_bytes;    // from a group to the next
  int first, groups;  // of the groups of a row
};

// Of the passes over a block, this one and how many there are. Each asks for
// its share of what comes next, so that all wait for memory as little.
struct Share {
  int index, count;

  // Where to ask from while group number g, at p, is used; p if not by this.
  const uint8_t* ahead(const PackedBlock& block,
                       int g,
                       const uint8_t* p) const {
    bool mine = (count == 1 || g % count == index) && p + kAhead < block.end;
    return mine ? p + kAhead : p;
  }
};

template <class V>
struct PackedParams {
  typename V::F scale = V::zero(), bias = V::zero();

  // Of a strip's group, whose words end at p.
  PackedParams(const uint8_t* p, QuantFormat format, Dtype dtype) {
    with_dtype(dtype, [&](auto d) __attribute__((always_inline)) {
      constexpr Dtype kDtype = decltype(d)::value;
      scale = V::template load_as_float<kDtype>(p);
      if (format.has_biases()) {
        bias =
            V::template load_as_float<kDtype>(p + V::kLanes * size_of(kDtype));
      }
    });
    if (!format.has_biases()) {
      float middle = -static_cast<float>(1 << (format.bits - 1));
      bias = V::mul(V::set1(middle), scale);
    }
  }
};

// Calls tile(Int<rows>, m, share) for M rows of x, as equal parts of no more
// than kMost as can be.
template <int kMost, typename Fn>
void by_tiles(int M, Fn&& tile) {
  int tiles = (M + kMost - 1) / kMost;
  for (int i = 0, m = 0; i < tiles; ++i) {
    int count = (M - m + tiles - i - 1) / (tiles - i);
    with_int<kMost>(count, [&](auto rows) { tile(rows, m, Share{i, tiles}); });
    m += count;
  }
}

// Calls tile(Int<strips>, block, sums) for kStrips strips of `rows` at a time,
// then for those that are left, and `block_k` columns at a time; rounds sums
// [M, strips x lanes] to y when they are complete.
template <class V, int kStrips, typename Fn>
void by_packed_strips(const Weights& w,
                      int M,
                      Range rows,
                      int block_k,
                      Dtype dtype,
                      void* y,
                      float* sums,
                      Fn&& tile) {
  PackedBlock block;
  block.group_bytes = V::kLanes * packed_group_bytes(w.format, w.scale_dtype);
  int groups = w.K / w.format.group_size,
      apiece = block_k / w.format.group_size;
  block.strip_bytes = static_cast<size_t>(groups) * block.group_bytes;
  int size = size_of(dtype);
  int strips = (rows.end - rows.begin + V::kLanes - 1) / V::kLanes;
  const uint8_t* strip = w.packed + rows.begin / V::kLanes * block.strip_bytes;
  block.end = strip + strips * block.strip_bytes;
  by_rows<kStrips>(strips, [&](auto count, int s) {
    constexpr int kRows = decltype(count)::value * V::kLanes;
    for (int i = 0; i < M * kRows; ++i) sums[i] = 0;
    int first = w.columns.begin / w.format.group_size,
        end = w.columns.end / w.format.group_size;
    for (int g = first; g < end; g += apiece) {
      block.first = g;
      block.groups = smaller(apiece, end - g);
      block.begin = strip + s * block.strip_bytes +
                    static_cast<size_t>(g) * block.group_bytes;
      tile(count, block, sums);
    }
    int n = rows.begin + s * V::kLanes;
    for (int m = 0; m < M; ++m) {
      round_floats<V>(
          dtype,
          sums + m * kRows,
          smaller(rows.end - n, kRows),
          static_cast<uint8_t*>(y) + (static_cast<size_t>(m) * w.N + n) * size);
    }
  });
}

}  // namespace
}  // namespace nibble::cpu
