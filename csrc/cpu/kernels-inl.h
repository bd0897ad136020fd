// Everything in Kernels, for a SIMD facade V.
#pragma once

#include "csrc/cpu/columns-inl.h"
#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/gradient-inl.h"
#include "csrc/cpu/packed-inl.h"
#include "csrc/cpu/peak-inl.h"
#include "csrc/cpu/product-inl.h"
#include "csrc/cpu/unpack-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

template <class V>
void dequantize(const Weights& w, Range rows, Dtype dtype, void* out) {
  alignas(64) float row[kBlockK];
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  with_codes(w.format, [&](auto codes) {
    using Q = decltype(codes);
    for (int n = rows.begin; n < rows.end; ++n) {
      for (int k = 0; k < w.K; k += kBlockK) {
        Range columns{k, smaller(k + kBlockK, w.K)};
        int count = columns.end - columns.begin;
        decode_rows<V, Q, 1>(w, n, columns, row, count);
        to_natural_order<V, Q::kBits>(row, count);
        round_floats<V>(dtype,
                        row,
                        count,
                        static_cast<uint8_t*>(out) +
                            (static_cast<size_t>(n) * w.K + k) * size);
      }
    }
  });
}

template <class V>
void arrange(Dtype dtype, int bits, const void* x, size_t count, float* out) {
  const uint8_t* p = static_cast<const uint8_t*>(x);
  size_t size = dtype == Dtype::kFloat32 ? 4 : 2;
  alignas(64) float part[kBlockK];
  with_bits(bits, [&](auto b) {
    for (size_t i = 0; i < count; i += kBlockK) {
      int n = count - i < kBlockK ? static_cast<int>(count - i) : kBlockK;
      with_dtype(dtype, [&](auto d) {
        to_floats<V, decltype(d)::value>(p + i * size, n, part);
      });
      int k = 0;
      for (; k + V::kLanes <= n; k += V::kLanes) {
        V::store(
            out + i + k,
            V::template to_code_order<decltype(b)::value>(V::load(part + k)));
      }
      // Not a whole vector: the next values may be another thread's.
      for (; k < n; ++k) out[i + k] = part[k];
    }
  });
}

template <class V>
bool natural_order(int bits) {
  bool natural = true;
  with_bits(bits, [&](auto b) {
    natural = V::template kNatural<decltype(b)::value>;
  });
  return natural;
}

template <class V>
constexpr Kernels make_kernels() {
  return {arrange<V>,
          natural_order<V>,
          V::kFewRows,
          V::kTileRows,
          V::kPackedRows,
          multiply<V>,
          multiply_columns<V>,
          dequantize<V>,
          group_gradients<V>,
          add_products<V>,
          V::kLanes,
          packed_row_bytes,
          pack<V>,
          unpack<V>,
          multiply_registers<V>};
}

}  // namespace
}  // namespace nibble::cpu
