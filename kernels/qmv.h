// y = x @ w_hat^T, one row of x at a time: decoding a single token.
//
// A simdgroup takes NIBBLE_QMV_ROWS rows of w. Its lanes lie side by side along
// K, each with kCodes codes (8 bytes at 2, 4 and 8 bits):
//
//            K ->   lane 0  lane 1  lane 2  ...  lane 31 | lane 0  ...
//   row n           [codes] [codes] [codes]      [codes] | [codes]
//   row n + 1       [codes] [codes] [codes]      [codes] | [codes]
//
// So a load of the simdgroup is one contiguous span of a row, and the x that a
// lane has read serves all its rows. Sums are float and are rounded once, at
// the store. 16 bytes a lane were tried: requests for w are twice as wide, but
// neighbouring lanes then read x so far apart that each request for it touches
// twice as many cache lines.
#pragma once

#include <metal_stdlib>

#include "kernels/dequant.h"
#include "kernels/epilogue.h"
#include "kernels/packing.h"
#include "kernels/product.h"
#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// Returns the sum of x [codes]; scaled[i] is x[i] * unshift(i), which undoes
// the shift that Q::Codes leave in code i.
template <typename T, typename Q, int codes>
NIBBLE_INLINE float load_prescaled(const device T* x, thread float* scaled) {
  float sum = 0.0f;
#pragma clang loop unroll(full)
  for (int i = 0; i < codes; i += 4) {
    const vec<T, 4> v = *(const device vec<T, 4>*)(x + i);
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      const float value = float(v[j]);
      sum += value;
      scaled[i + j] = value * Q::unshift(i + j);
    }
  }
  return sum;
}

// The sum over `lanes` neighbouring lanes, in each of them.
template <int lanes>
NIBBLE_INLINE float sum_of_lanes(float value) {
  return lanes == 4 ? quad_sum(value) : simd_sum(value);
}

// sums[r] = x . w_hat[first_row + r] for NIBBLE_QMV_ROWS rows. `lanes` lanes
// share the work, and each of them gets the sums.
template <typename T, typename Q, int lanes>
NIBBLE_INLINE void qmv_rows(const thread QuantizedMatrix<Q>& weight,
                            const device T* x,
                            int N,
                            int first_row,
                            int lane,
                            thread float* sums) {
  constexpr int kRows = NIBBLE_QMV_ROWS;
  constexpr int kCodes = lane_codes(Q::kBits);
  constexpr int kWords = words_of(kCodes, Q::kBits);
  static_assert(Q::kGroupSize % kCodes == 0, "a lane's codes share a group");

#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
    sums[r] = 0.0f;
  }
  // K is a multiple of a lane's codes: a lane has all of them or none.
  for (int k = lane * kCodes; k < weight.K; k += lanes * kCodes) {
    float x_scaled[kCodes];
    const float x_sum = load_prescaled<T, Q, kCodes>(x + k, x_scaled);
#pragma clang loop unroll(full)
    for (int r = 0; r < kRows; ++r) {
      // Past the last row: the last row again, not stored.
      const int row = min(first_row + r, N - 1);
      uint words[kWords];
      load_words<kWords>(weight.words_at(row, k), words);
      const typename Q::Parameters affine = weight.affine_at(row, k);

      float dot = 0.0f;
#pragma clang loop unroll(full)
      for (int i = 0; i < kCodes; i += Q::kAtOnce) {
        const typename Q::Codes codes(words, i);
#pragma clang loop unroll(full)
        for (int j = 0; j < Q::kAtOnce; ++j) {
          dot = fma(x_scaled[i + j], codes.code(j), dot);
        }
      }
      sums[r] = Q::add(sums[r], affine, dot, x_sum);
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < kRows; ++r) {
    sums[r] = sum_of_lanes<lanes>(sums[r]);
  }
}

// Lane 0 rounds the sums of qmv_rows() and stores them in y [N].
template <typename T>
NIBBLE_INLINE void store_rows(const thread float* sums,
                              const thread Epilogue<T>& epilogue,
                              device T* y,
                              int N,
                              int first_row,
                              int lane) {
#pragma clang loop unroll(full)
  for (int r = 0; r < NIBBLE_QMV_ROWS; ++r) {
    const int row = first_row + r;
    if (lane == 0 && row < N) {
      y[row] = epilogue.finish(sums[r], row, size_t(row));
    }
  }
}

// The first row of w that a simdgroup takes.
NIBBLE_INLINE int qmv_first_row(uint3 tgid, int sgid) {
  return (int(tgid.x) * NIBBLE_QMV_SIMDGROUPS + sgid) * NIBBLE_QMV_ROWS;
}

// Computes the part of row `row` of y that belongs to `lanes` lanes.
template <int lanes, typename T, typename Q>
NIBBLE_INLINE void qmv_row(const thread Product<T, Q>& p,
                           int row,
                           int first_row,
                           int lane) {
  float sums[NIBBLE_QMV_ROWS];
  const device T* x = p.x + size_t(row) * size_t(p.weight.K);
  qmv_rows<T, Q, lanes>(p.weight, x, p.N, first_row, lane, sums);
  const size_t offset = size_t(row) * size_t(p.N);
  const Epilogue<T> epilogue = p.epilogue.at(offset);
  store_rows(sums, epilogue, p.y + offset, p.N, first_row, lane);
}

struct Qmv : Transposed {
  static NIBBLE_INLINE constexpr int columns_of_tile() {
    return NIBBLE_QMV_ROWS * NIBBLE_QMV_SIMDGROUPS;
  }

  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4*) {
    const int first_row = qmv_first_row(tgid, sgid);
    if (first_row < p.N) {
      qmv_row<NIBBLE_SIMD_WIDTH>(p, int(tgid.y), first_row, int(lane));
    }
  }
};

// The same for a small K, where most lanes of a simdgroup would have no codes:
// each quad takes rows of its own.
struct QmvQuad : Transposed {
  template <typename T, typename Q>
  static NIBBLE_INLINE void run(const thread Product<T, Q>& p,
                                uint3 tgid,
                                int sgid,
                                uint lane,
                                threadgroup uint4*) {
    const int simdgroup = int(tgid.x) * NIBBLE_QMV_SIMDGROUPS + sgid;
    const int quad = simdgroup * NIBBLE_QMV_QUADS + int(lane) / 4;
    qmv_row<4>(p, int(tgid.y), quad * NIBBLE_QMV_ROWS, int(lane) % 4);
  }
};

}  // namespace nibble
