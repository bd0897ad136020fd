// Attention, written once against a SIMD facade V: an online softmax over
// blocks of keys. Everything has internal linkage, as in kernels-inl.h.
#pragma once

#include <limits>

#include "csrc/cpu/epilogue-inl.h"
#include "csrc/cpu/layers-inl.h"

namespace nibble::cpu {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
// The largest score of a row that sees keys whose scores are all -inf. It is
// below every other finite score, and its weights are 0.
constexpr float kLowest = std::numeric_limits<float>::lowest();

// ---- products -----------------------------------------------------------

// c [kM, kV vectors] += a [kM, count] * b [count, kV vectors]. Lanes run over
// the columns of b.
template <class V, int kM, int kV>
void outer_tile(const float* a,
                int a_stride,
                const float* b,
                int64_t b_stride,
                int count,
                float* c,
                int c_stride) {
  typename V::F sum[kM][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sum[m][v] = V::load(c + m * c_stride + v * V::kLanes);
    }
  }
  for (int k = 0; k < count; ++k) {
    typename V::F row[kV];
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      row[v] = V::load(b + k * b_stride + v * V::kLanes);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      typename V::F factor = V::set1(a[m * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kV; ++v) {
        sum[m][v] = V::fma(factor, row[v], sum[m][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      V::store(c + m * c_stride + v * V::kLanes, sum[m][v]);
    }
  }
}

// c [M, N] += a [M, count] * b [count, N]; N in whole vectors.
template <class V>
void add_product(const float* a,
                 int a_stride,
                 int M,
                 const float* b,
                 int64_t b_stride,
                 int count,
                 float* c,
                 int c_stride,
                 int N) {
  constexpr int kWide = 4 * V::kLanes;
  int n = 0;
  auto columns = [&](auto vectors) {
    constexpr int kV = decltype(vectors)::value;
    for (int m = 0; m < M; m += V::kTileRows) {
      with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto rows) {
        outer_tile<V, decltype(rows)::value, kV>(a + m * a_stride,
                                                 a_stride,
                                                 b + n,
                                                 b_stride,
                                                 count,
                                                 c + m * c_stride + n,
                                                 c_stride);
      });
    }
    n += kV * V::kLanes;
  };
  while (n + kWide <= N) columns(Int<4>{});
  while (n < N) columns(Int<1>{});
}

// c [M, N] = a [M, D] * b [N, D]^T, lanes over D (whole vectors).
template <class V, int kM>
void inner_tile(
    const float* a, const float* b, int64_t b_stride, int D, int N, float* c) {
  for (int n = 0; n < N; n += 4) {
    // Beyond the last row the last row is read again and its products dropped.
    const float* rows[4];
    for (int i = 0; i < 4; ++i) rows[i] = b + smaller(n + i, N - 1) * b_stride;
    typename V::F sum[kM][4];
    for (auto& row : sum) {
      for (auto& s : row) s = V::zero();
    }
    for (int d = 0; d < D; d += V::kLanes) {
      typename V::F k[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) k[i] = V::load(rows[i] + d);
#pragma GCC unroll 8
      for (int m = 0; m < kM; ++m) {
        typename V::F q = V::load(a + m * D + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[m][i] = V::fma(q, k[i], sum[m][i]);
      }
    }
#pragma GCC unroll 8
    for (int m = 0; m < kM; ++m) {
      V::sum4(
          sum[m][0], sum[m][1], sum[m][2], sum[m][3], c + m * kKeyBlock + n);
    }
  }
}

template <class V>
void inner_product(const float* a,
                   int M,
                   const float* b,
                   int64_t b_stride,
                   int D,
                   int N,
                   float* c) {
  for (int m = 0; m < M; m += V::kTileRows) {
    with_int<V::kTileRows>(smaller(M - m, V::kTileRows), [&](auto rows) {
      inner_tile<V, decltype(rows)::value>(
          a + m * D, b, b_stride, D, N, c + m * kKeyBlock);
    });
  }
}

// ---- operands -----------------------------------------------------------

struct Panel {
  const float* data;
  int64_t stride;
};

// Returns rows of D elements as fp32 rows of whole vectors, zeros beyond D.
// They are copied to `room` unless they already have that form.
template <class V>
Panel as_panel(Dtype dtype,
               const uint8_t* rows,
               int64_t stride,
               int count,
               int D,
               float* room) {
  if (dtype == Dtype::kFloat32 && D % kMaxLanes == 0) {
    return {reinterpret_cast<const float*>(rows), stride};
  }
  int width = whole_vectors(D);
  for (int r = 0; r < count; ++r) {
    float* out = room + r * width;
    widen<V>(dtype, rows + r * stride * size_of(dtype), D, out);
    for (int i = D; i < width; ++i) out[i] = 0;
  }
  return {room, width};
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
  int D = args.kv.D, width = whole_vectors(D);
  typename V::F scale = V::set1(args.scale);
  for (int r = 0; r < args.q.rows; ++r, q += width) {
    int64_t at = r / args.q.heads * args.q.position_stride +
                 r % args.q.heads * args.q.head_stride;
    widen<V>(args.dtype, args.q.data + at * size_of(args.dtype), D, q);
    for (int i = D; i < width; ++i) q[i] = 0;
    for (int i = 0; i < width; i += V::kLanes) {
      V::store(q + i, V::mul(V::load(q + i), scale));
    }
  }
}

// Masks the scores [count] of row r for the keys from `begin` on.
template <class V>
void apply_mask(
    const AttendArgs& args, int r, int begin, int count, float* scores) {
  int position = r / args.q.heads, head = r % args.q.heads;
  if (args.causal) {
    int visible = args.visible + position - begin;
    for (int i = visible < 0 ? 0 : visible; i < count; ++i) {
      scores[i] = kMasked;
    }
  }
  const Mask& mask = args.mask;
  int64_t at =
      position * mask.position_stride + head * mask.head_stride + begin;
  switch (mask.kind) {
    case MaskKind::kNone:
      return;
    case MaskKind::kBool:
      for (int i = 0; i < count; ++i) {
        scores[i] = mask.data[at + i] ? scores[i] : kMasked;
      }
      return;
    case MaskKind::kAdditive:
      alignas(64) float added[kKeyBlock];
      widen<V>(mask.dtype, mask.data + at * size_of(mask.dtype), count, added);
      for (int i = 0; i < count; ++i) scores[i] += added[i];
      return;
  }
}

// ---- softmax ------------------------------------------------------------

// Returns the largest masked score of row r where a maximum that may pass over
// NaN found -inf: NaN, kLowest, or kMasked if the row sees none of these keys.
template <class V>
float look_closer(
    const AttendArgs& args, int r, int begin, int count, const float* scores) {
  for (int i = 0; i < count; ++i) {
    if (scores[i] != scores[i]) return scores[i];
  }
  alignas(64) float zeros[kKeyBlock] = {};
  apply_mask<V>(args, r, begin, count, zeros);
  for (int i = 0; i < count; ++i) {
    if (zeros[i] != kMasked) return kLowest;
  }
  return kMasked;
}

// Replaces the scores [count] of a row by exp(score - largest), and scales the
// sums so far to the new largest. `look_closer` is called if that is -inf.
template <class V, typename Fn>
void accumulate_row(float* scores,
                    int count,
                    Fn&& look_closer,
                    float& largest,
                    float& sum,
                    float* values,
                    int Dv) {
  int width = whole_vectors(count);
  for (int i = count; i < width; ++i) scores[i] = kMasked;
  typename V::F top = V::load(scores);
  for (int i = V::kLanes; i < width; i += V::kLanes) {
    top = V::max(top, V::load(scores + i));
  }
  float before = largest, now = V::largest(top);
  if (before > now) now = before;
  if (now == kMasked) now = look_closer();
  if (now == kMasked) {  // no key is visible so far
    for (int i = 0; i < width; ++i) scores[i] = 0;
    return;
  }
  typename V::F total = V::zero(), minus = V::set1(-now);
  for (int i = 0; i < width; i += V::kLanes) {
    typename V::F weight = exp<V>(V::add(V::load(scores + i), minus));
    total = V::add(total, weight);
    V::store(scores + i, weight);
  }
  if (before != now) {
    float correction[kMaxLanes];
    V::store(correction, exp<V>(V::set1(before - now)));
    typename V::F factor = V::set1(correction[0]);
    sum *= correction[0];
    for (int i = 0; i < Dv; i += V::kLanes) {
      V::store(values + i, V::mul(V::load(values + i), factor));
    }
    largest = now;
  }
  sum += V::sum(total);
}

// ---- attention ----------------------------------------------------------

template <class V>
size_t attend_scratch(int rows, int D, int Dv) {
  int dv = whole_vectors(Dv), d = whole_vectors(D);
  return size_t(rows) * (d + kKeyBlock) + size_t(kKeyBlock) * (2 * d + dv);
}

template <class V>
void attend(const AttendArgs& args, Attended out, float* scratch) {
  const KeysValues& kv = args.kv;
  int M = args.q.rows, D = whole_vectors(kv.D), Dv = whole_vectors(kv.Dv);
  float* q = scratch;
  float* scores = q + size_t(M) * D;
  float* key_room = scores + size_t(M) * kKeyBlock;
  float* value_room = key_room + size_t(kKeyBlock) * D;
  float* transposed = value_room + size_t(kKeyBlock) * Dv;
  size_t size = size_of(args.dtype);

  gather_queries<V>(args, q);
  for (int r = 0; r < M; ++r) {
    out.largest[r] = kMasked;
    out.sum[r] = 0;
  }
  for (size_t i = 0; i < size_t(M) * Dv; ++i) out.values[i] = 0;

  for (int begin = args.begin; begin < args.end; begin += kKeyBlock) {
    int count = smaller(kKeyBlock, args.end - begin);
    Panel keys = as_panel<V>(args.dtype,
                             kv.keys + begin * kv.key_stride * int64_t(size),
                             kv.key_stride,
                             count,
                             kv.D,
                             key_room);
    if (M <= args.few_queries) {
      inner_product<V>(q, M, keys.data, keys.stride, D, count, scores);
    } else {
      transpose(keys, count, kv.D, transposed);
      for (size_t i = 0; i < size_t(M) * kKeyBlock; ++i) scores[i] = 0;
      add_product<V>(q,
                     D,
                     M,
                     transposed,
                     kKeyBlock,
                     kv.D,
                     scores,
                     kKeyBlock,
                     whole_vectors(count));
    }
    for (int r = 0; r < M; ++r) {
      float* row = scores + size_t(r) * kKeyBlock;
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
    Panel values =
        as_panel<V>(args.dtype,
                    kv.values + begin * kv.value_stride * int64_t(size),
                    kv.value_stride,
                    count,
                    kv.Dv,
                    value_room);
    if (args.value_scale != 1) {
      values = scaled<V>(values, count, Dv, args.value_scale, value_room);
    }
    add_product<V>(scores,
                   kKeyBlock,
                   M,
                   values.data,
                   values.stride,
                   count,
                   out.values,
                   Dv,
                   Dv);
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

template <class V>
constexpr LayerKernels make_layer_kernels() {
  return {widen<V>,
          rms_norm<V>,
          rotate<V>,
          swiglu<V>,
          sum_exponentials<V>,
          add_and_round<V>,
          swiglu_and_round<V>,
          attend_scratch<V>,
          attend<V>,
          divide<V>};
}

}  // namespace
}  // namespace nibble::cpu
