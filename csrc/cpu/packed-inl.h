// The packed layout of weights: few rows of x meet weights in the order in
// which they lie in memory. A thread reads one stream, scales are beside their
// codes, and no sum goes across lanes.
//
// A strip has as many weight rows as a vector has lanes; lane r is row r.
// Strips follow each other, and within each its groups of codes:
//
//     word 0     w[0, 0:8]    w[1, 0:8]  ..   32 bits a lane: 4-bit codes are 8
//     word 1     w[0, 8:16]   w[1, 8:16] ..   (packed_words-inl.h)
//     ..
//     scales     s[0]         s[1]       ..   as in the checkpoint
//     biases     b[0]         b[1]       ..   if the format has them
//
// Rows beyond the last are zero. Integer products read words as integers-inl.h
// reads its panels. Products of floats keep a sum for each place within a
// vector of the unpacked row, and add these as V::sum4 adds lanes. So results
// have the same bits as without this layout.
#pragma once

#include "csrc/cpu/packed_words-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// V::kAhead is the distance of prefetches in bytes, V::kRowStreams the number
// of strips that one row of x meets at a time. A core's own prefetcher follows
// one stream, but no further than a page of 4 KB: one cold row of 4096 x 4096
// takes 0.112 ms with prefetches of 8 KB, 0.126 ms without (two cores of a Zen
// 5).

// The bytes of one row in a group.
constexpr int packed_group_bytes(QuantFormat format, Dtype scale_dtype) {
  int params = format.group_arrays() * size_of(scale_dtype);
  return format.group_size * format.bits / 8 + params;
}

// The bytes of a row.
inline size_t packed_row_bytes(QuantFormat format, Dtype scale_dtype, int K) {
  return static_cast<size_t>(K / format.group_size) *
         packed_group_bytes(format, scale_dtype);
}

// out = the stored words of a group of a strip, which begins at a row and a
// column.
template <class V, int kBits>
void pack_group(const Weights& w, int row, int column, uint8_t* out) {
  constexpr int kStored = kUnitStored<kBits>;
  size_t stride = bytes_of(w.K, kBits);
  const uint8_t* from = w.codes + row * stride + bytes_of(column, kBits);
  for (int r = 0; r < V::kLanes; ++r, from += stride, out += 4) {
    uint8_t* to = out;
    for (int k = 0; k < w.format.group_size; k += kUnitCodes<kBits>) {
      uint32_t words[kStored] = {};
      if (row + r < w.N) pack_unit<kBits>(from + bytes_of(k, kBits), words);
      for (int d = 0; d < kStored; ++d, to += 4 * V::kLanes) {
        __builtin_memcpy(to, words + d, 4);
      }
    }
  }
}

// out = the strips of `rows`, the first of which begins a strip.
template <class V>
void pack(const Weights& w, Range rows, uint8_t* out) {
  int group_size = w.format.group_size, size = size_of(w.scale_dtype);
  int groups = w.K / group_size;
  // Writes the next lanes, `bytes` each: rows n.. of an array at `from`.
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
      with_bits(w.format.bits, [&](auto bits) {
        pack_group<V, decltype(bits)::value>(w, n, g * group_size, out);
      });
      out += bytes_of(group_size, w.format.bits) * V::kLanes;
      size_t stride = static_cast<size_t>(groups) * size;
      by_param_arrays(w, [&](const uint8_t* params) {
        put(n, params + g * size, stride, size);
      });
    }
  }
}

// The strip that begins with `row`, from a column on. Beyond the last strip,
// the last.
template <class V>
const uint8_t* packed_strip(const Weights& w, int row, int column) {
  int strip = smaller(row, w.N - 1) / V::kLanes;
  int group_size = w.format.group_size;
  size_t group = size_t{1} * strip * (w.K / group_size) + column / group_size;
  return w.packed +
         group * V::kLanes * packed_group_bytes(w.format, w.scale_dtype);
}

// One block of columns of a strip, and of the strips of the same tile.
struct PackedBlock {
  const uint8_t* begin;
  const uint8_t* end;  // of the thread's strips: nothing beyond is prefetched
  size_t strip_bytes;
  int group_bytes;    // from a group to the next
  int first, groups;  // the first group of a row, and their number
};

// One of `count` passes over a block. Each prefetches a part of the data that
// comes next, so that all of them wait equally little.
template <class V>
struct Pass {
  int index, count;

  // Returns the address to prefetch while group number g, at p, is used; p if
  // another pass does.
  const uint8_t* ahead(const PackedBlock& block,
                       int g,
                       const uint8_t* p) const {
    bool mine = (count == 1 || g % count == index) && p + V::kAhead < block.end;
    return mine ? p + V::kAhead : p;
  }
};

// Calls tile(Int<rows>, m, pass) for M rows of x, in parts of at most kMost
// rows that are as equal as possible.
template <class V, int kMost, typename Fn>
void by_tiles(int M, Fn&& tile) {
  int tiles = (M + kMost - 1) / kMost;
  for (int i = 0, m = 0; i < tiles; ++i) {
    int count = (M - m + tiles - i - 1) / (tiles - i);
    with_int<kMost>(count,
                    [&](auto rows) { tile(rows, m, Pass<V>{i, tiles}); });
    m += count;
  }
}

// Calls tile(Int<strips>, block, sums) for kStrips strips of `rows` at a time,
// then one at a time, and for `block_k` columns at a time. Rounds the sums [M,
// strips x lanes] to y when they are complete.
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
  int groups = w.K / w.format.group_size;
  int step = block_k / w.format.group_size;
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
    for (int g = first; g < end; g += step) {
      block.first = g;
      block.groups = smaller(step, end - g);
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
