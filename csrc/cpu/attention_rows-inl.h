// The rows of queries, keys and values as fp32. V is a SIMD facade.
#pragma once

#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

struct Panel {
  const float* data;
  int64_t stride;
};

// Returns true if rows are fp32 rows of whole vectors as they lie.
inline bool is_panel(const CacheRows& rows) {
  return !rows.format.is_quantized() && rows.format.dtype == Dtype::kFloat32 &&
         rows.width % kMaxLanes == 0;
}

// Keys whose groups are read together: their values, of heads of 64, stay in
// the first level of any cache.
constexpr int kPanelStep = 32;

// Returns the floats that as_panel() needs beside the panel.
constexpr size_t group_scratch(int width) {
  return 2 * (size_t{kPanelStep} * width / kSmallestGroup + kMaxLanes);
}

// out [count, groups] = scales or biases as fp32. After out, whole vectors have
// room.
template <class V>
void widen_groups(Dtype dtype,
                  const uint8_t* p,
                  int64_t stride,
                  int count,
                  int groups,
                  float* out) {
  if (stride == groups * int64_t(size_of(dtype))) {
    widen<V>(dtype, p, count * groups, out);
    return;
  }
  for (int r = 0; r < count; ++r) {
    widen<V>(dtype, p + r * stride, groups, out + r * groups);
  }
}

// out [count, width] = the values of rows from `begin` on; count is at most
// kPanelStep.
template <class V, class Q>
void decode_cache(
    const CacheRows& rows, int begin, int count, float* room, float* out) {
  constexpr int kBytes = V::kLanes * Q::kBits / 8;
  int group_size = rows.format.group_size, groups = rows.width / group_size;
  float* scales = room;
  float* biases = room + kPanelStep * groups + kMaxLanes;
  widen_groups<V>(rows.format.dtype,
                  rows.scales + begin * rows.scale_stride,
                  rows.scale_stride,
                  count,
                  groups,
                  scales);
  widen_groups<V>(rows.format.dtype,
                  rows.biases + begin * rows.bias_stride,
                  rows.bias_stride,
                  count,
                  groups,
                  biases);
  for (int r = 0; r < count; ++r) {
    const uint8_t* p = rows.data + (begin + r) * rows.stride;
    for (int g = 0; g < groups; ++g, ++scales, ++biases) {
      auto group = V::template group<Q>(*scales, *biases);
      for (int k = 0; k < group_size; k += 32) {
#pragma GCC unroll 4
        for (int i = 0; i < 32; i += V::kLanes, p += kBytes, out += V::kLanes) {
          V::store(out,
                   V::template to_natural_order<Q::kBits>(
                       V::template decode<Q>(p, group)));
        }
      }
    }
  }
}

// Returns `count` rows from `begin` on as fp32 rows of whole vectors, zeros
// beyond their width. They are copied to `out` unless they already have that
// form. `room` has group_scratch() floats.
template <class V>
Panel as_panel(
    const CacheRows& rows, int begin, int count, float* room, float* out) {
  if (is_panel(rows)) {
    return {reinterpret_cast<const float*>(rows.data + begin * rows.stride),
            rows.stride / int64_t{sizeof(float)}};
  }
  int D = rows.width, width = whole_vectors(D);
  if (!rows.format.is_quantized()) {
    for (int r = 0; r < count; ++r) {
      float* to = out + r * width;
      const uint8_t* from = rows.data + (begin + r) * rows.stride;
      widen<V>(rows.format.dtype, from, D, to);
      for (int i = D; i < width; ++i) to[i] = 0;
    }
    return {out, width};
  }
  with_bits(rows.format.bits, [&](auto bits) {
    constexpr int kBits = decltype(bits)::value;
    if constexpr (lie_in_bytes(kBits)) {
      for (int r = 0; r < count; r += kPanelStep) {
        decode_cache<V, IntegerCodes<kBits>>(rows,
                                             begin + r,
                                             smaller(kPanelStep, count - r),
                                             room,
                                             out + r * width);
      }
    }
  });
  return {out, width};
}

// Returns rows [count, D] times a factor, in `room`.
template <class V>
Panel scaled(Panel rows, int count, int D, float factor, float* room) {
  for (int r = 0; r < count; ++r) {
    const float* from = rows.data + r * rows.stride;
    for (int i = 0; i < D; i += V::kLanes) {
      V::store(room + r * D + i, V::mul(V::load(from + i), V::set1(factor)));
    }
  }
  return {room, D};
}

// out [D, kKeyBlock] = rows [count, D]^T, zeros beyond count.
inline void transpose(Panel rows, int count, int D, float* out) {
  constexpr int kRows = kMaxLanes;
  for (int r = 0; r < count; r += kRows) {
    if (r + kRows <= count) {
      const float* from = rows.data + r * rows.stride;
      for (int d = 0; d < D; ++d) {
        float* to = out + d * kKeyBlock + r;
        for (int i = 0; i < kRows; ++i) to[i] = from[i * rows.stride + d];
      }
    } else {
      for (int d = 0; d < D; ++d) {
        for (int i = r; i < r + kRows; ++i) {
          out[d * kKeyBlock + i] =
              i < count ? rows.data[i * rows.stride + d] : 0;
        }
      }
    }
  }
}

// q [rows, whole_vectors(D)] = the queries as fp32, scaled.
template <class V>
void gather_queries(const AttendArgs& args, float* q) {
  int D = args.keys.width, width = whole_vectors(D);
  typename V::F scale = V::set1(args.scale);
  for (int r = 0; r < args.q.rows; ++r, q += width) {
    int64_t at = r / args.q.heads * args.q.position_stride +
                 r % args.q.heads * args.q.head_stride;
    widen<V>(args.q.dtype, args.q.data + at * size_of(args.q.dtype), D, q);
    for (int i = D; i < width; ++i) q[i] = 0;
    for (int i = 0; i < width; i += V::kLanes) {
      V::store(q + i, V::mul(V::load(q + i), scale));
    }
  }
}

}  // namespace
}  // namespace nibble::cpu
