// w_hat from a packed matrix: eight codes for each thread. Rows are whole words
// and whole groups, so they need no arithmetic of their own.
#pragma once

#include "kernels/cuda/formats.h"
#include "kernels/shared.h"

namespace nibble {

template <typename T, typename Weights>
struct Dequantize {
  using Format = Weights;

  static NIBBLE_DEVICE void run(const uint32* w,
                                const typename Format::Scale* scales,
                                const typename Format::Scale* biases,
                                uint16* w_hat,
                                size_t eights) {
    const size_t at =
        size_t(blockIdx.x) * NIBBLE_DEQUANTIZE_THREADS + threadIdx.x;
    if (at >= eights) {
      return;
    }
    using In = typename Format::template In<T>;
    constexpr int kBits = Format::kBits;
    const size_t bit = at * (8 * kBits);
    const uint32* p = w + bit / 32;
    const int shift = int(bit % 32);
    const bool more = shift + 8 * kBits > 32;
    uint32 words[2], pairs[4];
    eight_codes(words, __ldg(p), more ? __ldg(p + 1) : 0, shift);
    In::decode(pairs, words, In::at(scales, biases, at * 8 / Format::kGroup));
    reinterpret_cast<uint4*>(w_hat)[at] = in_turn<kBits>(pairs);
  }
};

}  // namespace nibble

#define NIBBLE_DEQUANTIZE_KERNEL(name, threads, blocks, ...)    \
  extern "C" __global__ void __launch_bounds__(threads, blocks) \
      name(const nibble::uint32* w,                             \
           const nibble::__VA_ARGS__::Format::Scale* scales,    \
           const nibble::__VA_ARGS__::Format::Scale* biases,    \
           nibble::uint16* w_hat,                               \
           DequantizeParams p) {                                \
    nibble::__VA_ARGS__::run(                                   \
        w, scales, biases, w_hat, size_t(p.rows) * (p.K / 8));  \
  }
