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

// out = x [rows, K] as planes, over out.scales [rows]. The scale of a row that
// is not finite is not finite.
template <class V, int kPlanes>
void split_rows(Dtype dtype,
                QuantFormat format,
                const void* x,
                int rows,
                int K,
                const QuantizedRows& out) {
  constexpr int32_t kInfinite = 0x7f800000, kOne = 1 << 23;
  size_t row_bytes = size_t(K) * size_of(dtype);
  float unit = 1;
  with_tiles(format, [&](auto form) { unit = decltype(form)::kUnit; });
  with_dtype(dtype, [&](auto d) {
    constexpr Dtype kDtype = decltype(d)::value;
    with_order(format, [&](auto bits) {
      for (int r = 0; r < rows; ++r) {
        const uint8_t* p = static_cast<const uint8_t*>(x) + r * row_bytes;
        typename V::I best = V::int_zero();
        auto load = [&](int k) __attribute__((always_inline)) {
          return V::template load_as_float<kDtype>(p + k * size_of(kDtype));
        };
        for (int k = 0; k < K; k += V::kLanes) {
          best = V::max_magnitude(best, load(k));
        }
        int32_t lanes[V::kLanes], most = 0;
        V::int_store(lanes, best);
        for (int32_t lane : lanes) most = lane > most ? lane : most;
        // A power of two whose inverse is a normal number.
        int32_t scale = most & kInfinite;
        scale = scale < kOne ? kOne : smaller(scale, 253 * kOne);
        int32_t inverse_bits = 254 * kOne - scale;
        float inverse;
        __builtin_memcpy(&inverse, &inverse_bits, 4);
        if (most >= kInfinite) scale = most;
        __builtin_memcpy(&out.scales[r], &scale, 4);
        int end = (K + kBfloatRun - 1) / kBfloatRun * kBfloatRun;
        for (int k = 0; k < end; k += V::kLanes) {
          typename V::F v = k < K ? load(k) : V::zero();
          v = V::mul(V::mul(v, V::set1(inverse)), V::set1(unit));
          size_t plane = size_t(k / kBfloatRun) * kPlanes;
          uint16_t* to = static_cast<uint16_t*>(out.codes) +
                         (plane * out.rows + r) * kBfloatRun + k % kBfloatRun;
          V::split(V::template to_tile_order<decltype(bits)::value>(v),
                   to,
                   kPlanes == 2 ? to + size_t(out.rows) * kBfloatRun : nullptr);
        }
      }
    });
  });
}

}  // namespace
}  // namespace nibble::cpu
