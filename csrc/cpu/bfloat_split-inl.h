// Activations in bfloat16, as one number or the sum of two, in the order of the
// codes in right tiles. A row is scaled by a power of two, so that its largest
// number is near 1: sums do not overflow, and only those far below the largest
// become subnormal, which tiles take for zero.
#pragma once

#include "csrc/cpu/bfloat_formats-inl.h"
#include "csrc/cpu/bfloat_kernels.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Calls fn with the bits of a code in the words that become tiles.
template <typename Fn>
void with_order(QuantFormat format, Fn&& fn) {
  switch (panel_bits(format.bits)) {
    case 2:
      return fn(Int<2>{});
    case 4:
      return fn(Int<4>{});
    default:
      return fn(Int<8>{});
  }
}

// Returns the inverse of a row's scale, the power of two below its largest
// number, and stores the scale. It is not finite if the row is not.
template <class V, Dtype kDtype>
float scale_row(const uint8_t* x, int K, float* scale) {
  constexpr int32_t kInfinite = 0x7f800000, kOne = 1 << 23;
  typename V::I best = V::int_zero();
  for (int k = 0; k < K; k += V::kLanes) {
    best = V::max_magnitude(
        best, V::template load_as_float<kDtype>(x + k * size_of(kDtype)));
  }
  int32_t lanes[V::kLanes], most = 0;
  V::int_store(lanes, best);
  for (int32_t lane : lanes) most = lane > most ? lane : most;
  // Its inverse is a normal number.
  int32_t bits = most & kInfinite;
  bits = bits < kOne ? kOne : smaller(bits, 253 * kOne);
  int32_t inverse_bits = 254 * kOne - bits;
  if (most >= kInfinite) bits = most;
  __builtin_memcpy(scale, &bits, 4);
  float inverse;
  __builtin_memcpy(&inverse, &inverse_bits, 4);
  return inverse;
}

// Rows that are split together: their numbers in a run are neighbours.
constexpr int kSplitRows = 16;

// out = x [rows, K] as planes, over out.scales [rows].
template <class V, int kPlanes>
void split_rows(Dtype dtype,
                QuantFormat format,
                const void* x,
                int rows,
                int K,
                const QuantizedRows& out) {
  float unit = 1;
  with_tiles(format, [&](auto form) { unit = decltype(form)::kUnit; });
  size_t plane_codes = size_t(out.rows) * kBfloatRun;
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    auto row = [&](int r) {
      size_t bytes = size_t(r) * K * size_of(kDtype);
      return static_cast<const uint8_t*>(x) + bytes;
    };
    with_order(format, [&](auto bits) {
      for (int first = 0; first < rows; first += kSplitRows) {
        int end = smaller(first + kSplitRows, rows);
        float inverse[kSplitRows];
        for (int r = first; r < end; ++r) {
          inverse[r - first] = scale_row<V, kDtype>(row(r), K, out.scales + r);
        }
        uint16_t* run = static_cast<uint16_t*>(out.codes);
        for (int k = 0; k < K; k += kBfloatRun, run += kPlanes * plane_codes) {
          for (int r = first; r < end; ++r) {
            for (int i = 0; i < kBfloatRun; i += V::kLanes) {
              typename V::F v = V::zero();
              if (k + i < K) {
                v = V::template load_as_float<kDtype>(
                    row(r) + (k + i) * size_of(kDtype));
              }
              v = V::mul(V::mul(v, V::set1(inverse[r - first])), V::set1(unit));
              uint16_t* to = run + size_t(r) * kBfloatRun + i;
              V::split(V::template to_tile_order<decltype(bits)::value>(v),
                       to,
                       kPlanes == 2 ? to + plane_codes : nullptr);
            }
          }
        }
      }
    });
  });
}

}  // namespace
}  // namespace nibble::cpu
