// y = silu(x @ gate^T) * (x @ up^T) for few rows of x, in one launch: the first
// half of a gated MLP. silu(g) = g / (1 + exp(-g)), in float, and nothing
// before y is rounded.
//
// A block computes its tile of both products, one after the other, as
// qmm_skinny.h does.
#pragma once

#include "kernels/cuda/qmm_skinny.h"

namespace nibble {

template <typename T,
          typename Weights,
          int BM,
          int BN,
          int WK,
          int F,
          bool ahead>
struct Swiglu {
  using Product = QmmSkinny<T, Weights, BM, BN, WK, F, ahead>;
  using Format = Weights;
  using Scale = typename Format::Scale;

  // A packed matrix, or several.
  struct Packed {
    const uint32* w;
    const Scale* scales;
    const Scale* biases;
  };

  // The rows of y from m0 on, at most BM, from matrix `which`. Sizes are
  // those of one product.
  template <typename Params>
  static NIBBLE_DEVICE void run(const Packed& gate,
                                const Packed& up,
                                size_t which,
                                const uint16* x,
                                const uint32* rows,
                                uint16* y,
                                const Params& p,
                                int M,
                                int m0,
                                float* sums) {
    const size_t row = which * p.N;
    auto operands = [&](const Packed& q) {
      return Matmul<Scale>{x,
                           q.w + row * (p.K / 32 * Format::kBits),
                           q.scales + row * (p.K / Format::kGroup),
                           q.biases + row * (p.K / Format::kGroup),
                           nullptr,
                           nullptr,
                           y,
                           M,
                           p.N,
                           p.K,
                           rows};
    };
    const Matmul<Scale> product = operands(gate);
    Product::accumulate(product, m0, sums);
    Product::accumulate(operands(up), m0, sums + Product::kSums);
    Product::each(product, m0, [&](int m, int n, int at) {
      const float g = Product::total(sums, at);
      const float u = Product::total(sums + Product::kSums, at);
      product.template store<T>(m, n, u * (g / (1.0f + expf(-g))));
    });
  }

  // As the kernels of matmul.h: a batch, products that choose their matrices,
  // and sorted ones of one row.
  static NIBBLE_DEVICE void of_batch(const Packed& gate,
                                     const Packed& up,
                                     const uint16* x,
                                     uint16* y,
                                     const MatmulParams& p,
                                     float* sums) {
    const size_t b = blockIdx.z;
    x += b * p.M * p.K;
    y += b * p.M * p.N;
    const int m0 = blockIdx.y * BM;
    run(gate, up, b % p.w_count, x, nullptr, y, p, p.M, m0, sums);
  }
  static NIBBLE_DEVICE void of_chosen(const Packed& gate,
                                      const Packed& up,
                                      const uint16* x,
                                      const uint32* lhs,
                                      const uint32* rhs,
                                      uint16* y,
                                      const GatherParams& p,
                                      float* sums) {
    const size_t b = blockIdx.z;
    x += size_t(lhs[b]) * p.M * p.K;
    y += b * p.M * p.N;
    const int m0 = blockIdx.y * BM;
    run(gate, up, rhs[b], x, nullptr, y, p, p.M, m0, sums);
  }
  static NIBBLE_DEVICE void of_sorted(const Packed& gate,
                                      const Packed& up,
                                      const uint16* x,
                                      const uint32* lhs,
                                      const uint32* rhs,
                                      uint16* y,
                                      const GatherParams& p,
                                      float* sums) {
    const ExpertRows rows = rows_of_tile<BM>(rhs, p.B, p.experts, blockIdx.y);
    if (rows.begin < rows.end) {
      const size_t which = rhs[rows.begin];
      run(gate, up, which, x, lhs, y, p, rows.end, rows.begin, sums);
    }
  }
};

}  // namespace nibble

#define NIBBLE_GATE_AND_UP(...)                                             \
  const nibble::uint32 *w, const nibble::__VA_ARGS__::Scale *scales,        \
      const nibble::__VA_ARGS__::Scale *biases, const nibble::uint32 *up_w, \
      const nibble::__VA_ARGS__::Scale *up_scales,                          \
      const nibble::__VA_ARGS__::Scale *up_biases, const nibble::uint16 *x

#define NIBBLE_SWIGLU_KERNEL(name, threads, blocks, ...)                    \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(       \
      NIBBLE_GATE_AND_UP(__VA_ARGS__), nibble::uint16* y, MatmulParams p) { \
    extern __shared__ float sums[];                                         \
    nibble::__VA_ARGS__::of_batch(                                          \
        {w, scales, biases}, {up_w, up_scales, up_biases}, x, y, p, sums);  \
  }

#define NIBBLE_CHOSEN_SWIGLU_KERNEL(of, name, threads, blocks, ...) \
  extern "C" __global__ void __launch_bounds__(threads, blocks)     \
      name(NIBBLE_GATE_AND_UP(__VA_ARGS__),                         \
           const nibble::uint32* lhs,                               \
           const nibble::uint32* rhs,                               \
           nibble::uint16* y,                                       \
           GatherParams p) {                                        \
    extern __shared__ float sums[];                                 \
    nibble::__VA_ARGS__::of({w, scales, biases},                    \
                            {up_w, up_scales, up_biases},           \
                            x,                                      \
                            lhs,                                    \
                            rhs,                                    \
                            y,                                      \
                            p,                                      \
                            sums);                                  \
  }
#define NIBBLE_GATHER_SWIGLU_KERNEL(...) \
  NIBBLE_CHOSEN_SWIGLU_KERNEL(of_chosen, __VA_ARGS__)
#define NIBBLE_SORTED_SWIGLU_KERNEL(...) \
  NIBBLE_CHOSEN_SWIGLU_KERNEL(of_sorted, __VA_ARGS__)
