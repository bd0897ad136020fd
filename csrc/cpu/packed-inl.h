// The packed layout of weights: few rows of x meet weights in the order in
// which they lie in memory. A thread reads one stream, scales are beside their
// codes, and no sum goes across lanes.
//
// A strip has as many weight rows as a vector has lanes; lane r is row r.
// Strips follow each other, and within each its groups of codes:
//
//     word 0     w[0, 0:8]    w[1, 0:8]  ..   32 bits a lane: 4-bit codes are 8
//     word 1     w[0, 8:16]   w[1, 8:16] ..
//     ..
//     scales     s[0]         s[1]       ..   as in the checkpoint
//     biases     b[0]         b[1]       ..   if the format has them
//
// Rows beyond the last are zero. Integer products read words as integers-inl.h
// reads its panels. Products of floats keep a sum for each place within a
// vector of the unpacked row, and add these as V::sum4 adds lanes. So results
// have the same bits as without this layout.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
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

// The bytes of a row; 0 for a format without a packed layout.
inline size_t packed_row_bytes(QuantFormat format, Dtype scale_dtype, int K) {
  return lie_in_bytes(format.bits)
             ? static_cast<size_t>(K / format.group_size) *
                   packed_group_bytes(format, scale_dtype)
             : 0;
}

// out = the strips of `rows`, the first of which begins a strip.
template <class V>
void pack(const Weights& w, Range rows, uint8_t* out) {
  int group_size = w.format.group_size, size = size_of(w.scale_dtype);
  int words = group_size * w.format.bits / 32;
  int groups = w.K / group_size;
  size_t row_bytes = bytes_of(w.K, w.format.bits);
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
      for (int d = 0; d < words; ++d) {
        put(n, w.codes + 4 * (g * words + d), row_bytes, 4);
      }
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

// out [rows, words] = `words` words of each row of a strip. `group_words` words
// of each lane lie together at p, and then at p + group_bytes.
template <class V>
void unpack_words(const uint8_t* p,
                  int words,
                  int group_words,
                  size_t group_bytes,
                  int rows,
                  uint8_t* out) {
  constexpr size_t kVector = 4 * V::kLanes;
  size_t stride = size_t{4} * words;
  for (int d = 0; d < words; d += V::kLanes) {
    int count = smaller(words - d, V::kLanes);
    const uint8_t* vectors[V::kLanes];
    for (int i = 0; i < count; ++i) {
      int word = d + i;
      vectors[i] =
          p + word / group_words * group_bytes + word % group_words * kVector;
    }
    uint8_t* to = out + size_t{4} * d;
    if (count == V::kLanes) {
      V::transpose(vectors,
                   rows,
                   reinterpret_cast<int32_t*>(to),
                   static_cast<int>(words));
      continue;
    }
    for (int r = 0; r < rows; ++r) {
      for (int i = 0; i < count; ++i) {
        __builtin_memcpy(to + r * stride + 4 * i, vectors[i] + 4 * r, 4);
      }
    }
  }
}

// out [rows, groups] = one parameter of each group. Those of a group lie
// together at p, and then at p + group_bytes.
template <int kSize>
void unpack_params(
    const uint8_t* p, int groups, size_t group_bytes, int rows, uint8_t* out) {
  for (int g = 0; g < groups; ++g, p += group_bytes) {
    for (int r = 0; r < rows; ++r) {
      __builtin_memcpy(
          out + (size_t{1} * r * groups + g) * kSize, p + r * kSize, kSize);
    }
  }
}

// Kernels::unpack.
template <class V>
void unpack(const Weights& w,
            Range rows,
            Range columns,
            const UnpackedRows& out) {
  int group_size = w.format.group_size, size = size_of(w.scale_dtype);
  int group_words = group_size * w.format.bits / 32;
  int groups = (columns.end - columns.begin) / group_size;
  size_t group_bytes =
      V::kLanes * size_t(packed_group_bytes(w.format, w.scale_dtype));
  size_t of_params = size_t{1} * groups * size;
  size_t of_codes = size_t{4} * groups * group_words;
  for (int n = rows.begin; n < rows.end; n += V::kLanes) {
    size_t row = n - rows.begin;
    int count = smaller(rows.end - n, V::kLanes);
    const uint8_t* p = packed_strip<V>(w, n, columns.begin);
    if (out.codes) {
      unpack_words<V>(p,
                      groups * group_words,
                      group_words,
                      group_bytes,
                      count,
                      out.codes + row * of_codes);
    }
    p += size_t{4} * V::kLanes * group_words;
    for (uint8_t* to : {out.scales, out.biases}) {
      if (to && size == 1) {
        unpack_params<1>(p, groups, group_bytes, count, to + row * of_params);
      } else if (to && size == 2) {
        unpack_params<2>(p, groups, group_bytes, count, to + row * of_params);
      } else if (to) {
        unpack_params<4>(p, groups, group_bytes, count, to + row * of_params);
      }
      p += size * V::kLanes;
    }
  }
}

// A block of packed weights as a matrix of its own in MLX's layout, in
// kUnpackedFloats of memory.
template <class V>
Weights unpacked_block(const Weights& w,
                       Range rows,
                       Range columns,
                       float* memory) {
  auto* codes = reinterpret_cast<uint8_t*>(memory);
  uint8_t* scales = codes + kBlockN * kBlockK;
  uint8_t* biases = scales + 4 * kBlockN * (kBlockK / kSmallestGroup);
  unpack<V>(w,
            rows,
            columns,
            {codes, scales, w.format.has_biases() ? biases : nullptr});
  Weights block = w;
  block.codes = codes;
  block.scales = scales;
  block.biases = biases;
  block.N = rows.end - rows.begin;
  block.K = columns.end - columns.begin;
  block.packed = nullptr;
  block.columns = {0, block.K};
  return block;
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
