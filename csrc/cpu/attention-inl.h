// Attention, written once against a SIMD facade V: an online softmax over
// blocks of keys. Everything has internal linkage, as in kernels-inl.h.
#pragma once

#include "csrc/cpu/attention_products-inl.h"
#include "csrc/cpu/attention_rows-inl.h"
#include "csrc/cpu/attention_scores-inl.h"
#include "csrc/cpu/epilogue-inl.h"
#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

template <class V>
size_t attend_scratch(int rows, int D, int Dv) {
  int dv = whole_vectors(Dv), d = whole_vectors(D);
  return size_t(rows) * (d + kKeyBlock) + size_t(kKeyBlock) * (2 * d + dv) +
         group_scratch(d > dv ? d : dv);
}

template <class V>
void attend(const AttendArgs& args, Attended out, float* scratch) {
  int M = args.q.rows;
  int D = whole_vectors(args.keys.width), Dv = whole_vectors(args.values.width);
  float* q = scratch;
  float* scores = q + size_t(M) * D;
  float* key_room = scores + size_t(M) * kKeyBlock;
  float* value_room = key_room + size_t(kKeyBlock) * D;
  float* transposed = value_room + size_t(kKeyBlock) * Dv;
  float* group_room = transposed + size_t(kKeyBlock) * D;
  // A few queries read each key and value once: rows that are converted are
  // best read while they are in the first-level cache.
  bool few = M <= args.few_queries;
  auto step = [&](const CacheRows& rows) {
    return few && !is_panel(rows) ? kPanelStep : kKeyBlock;
  };

  gather_queries<V>(args, q);
  for (int r = 0; r < M; ++r) {
    out.largest[r] = kMasked;
    out.sum[r] = 0;
  }
  for (size_t i = 0; i < size_t(M) * Dv; ++i) out.values[i] = 0;

  for (int begin = args.begin; begin < args.end; begin += kKeyBlock) {
    int count = smaller(kKeyBlock, args.end - begin);
    for (int i = 0; i < count; i += step(args.keys)) {
      int n = smaller(step(args.keys), count - i);
      Panel keys = as_panel<V>(args.keys, begin + i, n, group_room, key_room);
      if (few) {
        inner_product<V>(q, M, keys.data, keys.stride, D, n, scores + i);
        continue;
      }
      transpose(keys, n, args.keys.width, transposed);
      for (size_t j = 0; j < size_t(M) * kKeyBlock; ++j) scores[j] = 0;
      add_product<V>(q,
                     D,
                     M,
                     transposed,
                     kKeyBlock,
                     args.keys.width,
                     scores,
                     kKeyBlock,
                     whole_vectors(n));
    }
    for (int r = 0; r < M; ++r) {
      float* row = scores + size_t(r) * kKeyBlock;
      if (args.cap != 0) cap_scores<V>(args.cap, count, row);
      apply_mask<V>(args, r, begin, count, row);
      accumulate_row<V>(
          row,
          count,
          [&] { return look_closer<V>(args, r, begin, count, row); },
          out.largest[r],
          out.sum[r],
          out.values + size_t(r) * Dv,
          Dv);
    }
    for (int i = 0; i < count; i += step(args.values)) {
      int n = smaller(step(args.values), count - i);
      Panel values =
          as_panel<V>(args.values, begin + i, n, group_room, value_room);
      if (args.value_scale != 1) {
        values = scaled<V>(values, n, Dv, args.value_scale, value_room);
      }
      add_product<V>(scores + i,
                     kKeyBlock,
                     M,
                     values.data,
                     values.stride,
                     n,
                     out.values,
                     Dv,
                     Dv);
    }
  }
}

template <class V>
void divide(Dtype dtype, const float* values, float sum, int Dv, uint8_t* y) {
  float factor = sum == 0 ? 0 : 1 / sum;
  alignas(64) float part[kKeyBlock];
  for (int i = 0; i < Dv; i += kKeyBlock) {
    int count = smaller(kKeyBlock, Dv - i);
    for (int j = 0; j < count; j += V::kLanes) {
      V::store(part + j, V::mul(V::load(values + i + j), V::set1(factor)));
    }
    round_floats<V>(dtype, part, count, y + i * size_of(dtype));
  }
}

}  // namespace
}  // namespace nibble::cpu
