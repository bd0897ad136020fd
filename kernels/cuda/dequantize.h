// w_hat from a packed matrix: eight codes for each thread. Rows are whole words
// and whole groups, so they need no arithmetic of their own.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/shared.h"

namespace nibble {

template <typename T, int kBits, int kGroup>
struct Dequantize {
  static NIBBLE_DEVICE void run(const uint32* w,
                                const uint16* scales,
                                const uint16* biases,
                                uint16* w_hat,
                                size_t eights) {
    const size_t at =
        size_t(blockIdx.x) * NIBBLE_DEQUANTIZE_THREADS + threadIdx.x;
    if (at >= eights) {
      return;
    }
    // The codes are at most 64 bits, and begin at a whole byte of a word.
    const size_t bit = at * (8 * kBits);
    const uint32* p = w + bit / 32;
    const int shift = int(bit % 32);
    unsigned long long codes = __ldg(p);
    if (shift + 8 * kBits > 32) {
      codes |= static_cast<unsigned long long>(__ldg(p + 1)) << 32;
    }
    codes >>= shift;
    const size_t group = at * 8 / kGroup;
    const float scale = T::to_float(__ldg(scales + group));
    const float bias = T::to_float(__ldg(biases + group));
    uint32 pairs[4];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32 code = uint32(codes >> (i * kBits)) & ((1u << kBits) - 1);
      const uint32 value = T::from_float(__fmaf_rn(scale, float(code), bias));
      pairs[i / 2] = i % 2 ? pairs[i / 2] | value << 16 : value;
    }
    reinterpret_cast<uint4*>(w_hat)[at] =
        make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  }
};

}  // namespace nibble

#define NIBBLE_DEQUANTIZE_KERNEL(name, threads, blocks, bits, group, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks)           \
      name(const nibble::uint32* w,                                       \
           const nibble::uint16* scales,                                  \
           const nibble::uint16* biases,                                  \
           nibble::uint16* w_hat,                                         \
           DequantizeParams p) {                                          \
    nibble::__VA_ARGS__::run(                                             \
        w, scales, biases, w_hat, size_t(p.rows) * (p.K / 8));            \
  }
