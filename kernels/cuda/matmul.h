// Operands and epilogue of all kernels of y = x @ w_hat^T.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/expert_rows.h"
#include "kernels/shared.h"

namespace nibble {

// The operands of a product with one matrix.
template <typename Scale>
struct Matmul {
  const uint16* x;
  const uint32* w;
  const Scale* scales;
  const Scale* biases;     // not read if the format has none
  const uint16* bias;      // [N]; null if there is none
  const uint16* residual;  // of y's shape; null if there is none
  uint16* y;
  int M, N, K;
  const uint32* rows;  // of x, for each row of y; null if they are the same

  NIBBLE_DEVICE const uint16* x_row(int m) const {
    return x + size_t(rows ? rows[m] : m) * K;
  }

  // Stores one element of y, from its sum.
  template <typename T>
  NIBBLE_DEVICE void store(int m, int n, float sum) const {
    const size_t at = size_t(m) * N + n;
    if (bias) {
      sum += T::to_float(bias[n]);
    }
    if (residual) {
      sum += T::to_float(residual[at]);
    }
    y[at] = T::from_float(sum);
  }
};

}  // namespace nibble

// A kernel for a batch of products, blockIdx.z being the matrix of x and y. The
// compiler gives it so few registers that a multiprocessor runs `blocks` blocks
// at a time.
#define NIBBLE_MATMUL_KERNEL(name, threads, blocks, ...)                    \
  extern "C" __global__ void __launch_bounds__(threads, blocks)             \
      name(const nibble::uint32* w,                                         \
           const nibble::__VA_ARGS__::Format::Scale* scales,                \
           const nibble::__VA_ARGS__::Format::Scale* biases,                \
           const nibble::uint16* x,                                         \
           const nibble::uint16* bias,                                      \
           const nibble::uint16* residual,                                  \
           nibble::uint16* y,                                               \
           MatmulParams p) {                                                \
    extern __shared__ float sums[];                                         \
    const size_t b = blockIdx.z;                                            \
    const size_t row = b % p.w_count * p.N;                                 \
    nibble::__VA_ARGS__::run(                                               \
        {x + b * p.M * p.K,                                                 \
         w + row * (p.K / 32 * nibble::__VA_ARGS__::Format::kBits),         \
         scales + row * (p.K / nibble::__VA_ARGS__::Format::kGroup),        \
         biases + row * (p.K / nibble::__VA_ARGS__::Format::kGroup),        \
         p.epilogue & NIBBLE_BIAS ? bias : nullptr,                         \
         p.epilogue & NIBBLE_RESIDUAL ? residual + b * p.M * p.N : nullptr, \
         y + b * p.M * p.N,                                                 \
         p.M,                                                               \
         p.N,                                                               \
         p.K,                                                               \
         nullptr},                                                          \
        blockIdx.y * nibble::__VA_ARGS__::kRowsOfTile,                      \
        sums);                                                              \
  }

// A kernel for products that choose their matrices: blockIdx.z is a product.
#define NIBBLE_GATHER_KERNEL(name, threads, blocks, ...)             \
  extern "C" __global__ void __launch_bounds__(threads, blocks)      \
      name(const nibble::uint32* w,                                  \
           const nibble::__VA_ARGS__::Format::Scale* scales,         \
           const nibble::__VA_ARGS__::Format::Scale* biases,         \
           const nibble::uint16* x,                                  \
           const nibble::uint32* lhs,                                \
           const nibble::uint32* rhs,                                \
           nibble::uint16* y,                                        \
           GatherParams p) {                                         \
    extern __shared__ float sums[];                                  \
    const size_t b = blockIdx.z;                                     \
    const size_t row = size_t(rhs[b]) * p.N;                         \
    nibble::__VA_ARGS__::run(                                        \
        {x + size_t(lhs[b]) * p.M * p.K,                             \
         w + row * (p.K / 32 * nibble::__VA_ARGS__::Format::kBits),  \
         scales + row * (p.K / nibble::__VA_ARGS__::Format::kGroup), \
         biases + row * (p.K / nibble::__VA_ARGS__::Format::kGroup), \
         nullptr,                                                    \
         nullptr,                                                    \
         y + b * p.M * p.N,                                          \
         p.M,                                                        \
         p.N,                                                        \
         p.K,                                                        \
         nullptr},                                                   \
        blockIdx.y * nibble::__VA_ARGS__::kRowsOfTile,               \
        sums);                                                       \
  }

// A kernel for products of one row each, sorted by their matrices: blockIdx.y
// is a tile of kernels/expert_rows.h.
#define NIBBLE_SORTED_KERNEL(name, threads, blocks, ...)             \
  extern "C" __global__ void __launch_bounds__(threads, blocks)      \
      name(const nibble::uint32* w,                                  \
           const nibble::__VA_ARGS__::Format::Scale* scales,         \
           const nibble::__VA_ARGS__::Format::Scale* biases,         \
           const nibble::uint16* x,                                  \
           const nibble::uint32* lhs,                                \
           const nibble::uint32* rhs,                                \
           nibble::uint16* y,                                        \
           GatherParams p) {                                         \
    extern __shared__ float sums[];                                  \
    const nibble::ExpertRows rows =                                  \
        nibble::rows_of_tile<nibble::__VA_ARGS__::kRowsOfTile>(      \
            rhs, p.B, p.experts, blockIdx.y);                        \
    if (rows.begin == rows.end) {                                    \
      return;                                                        \
    }                                                                \
    const size_t row = size_t(rhs[rows.begin]) * p.N;                \
    nibble::__VA_ARGS__::run(                                        \
        {x,                                                          \
         w + row * (p.K / 32 * nibble::__VA_ARGS__::Format::kBits),  \
         scales + row * (p.K / nibble::__VA_ARGS__::Format::kGroup), \
         biases + row * (p.K / nibble::__VA_ARGS__::Format::kGroup), \
         nullptr,                                                    \
         nullptr,                                                    \
         y,                                                          \
         rows.end,                                                   \
         p.N,                                                        \
         p.K,                                                        \
         lhs},                                                       \
        rows.begin,                                                  \
        sums);                                                       \
  }
