// y = x @ w_hat^T for few rows of x, on tensor cores. w is read in MLX's own
// layout, once for each BM rows of x.
//
// A block of threads computes BM x BN of y. Its WK warps share K, and their
// sums are added in a fixed order. Each asks for F blocks of its rows of w at a
// time, and if `ahead` also for x, before it uses the first.
//
//   blocks of w ->  | 0 1 2 3 | 4 5 6 7 | 8 ...        F = 4
//                   |  warp 0 |  warp 1 | ...
//
// A tensor core multiplies w [16, 16] by x^T [16, 8]. The order of the terms of
// a sum is free if w and x agree. So a lane's share of a fragment is a run of
// neighbouring codes of one row (codes.h), without shared memory or repacking.
// All 16 terms come from one group. The product of codes and activations is
// exact, and scale and bias join in float:
//
//   y += scale * sum(q * x) + bias * sum(x)
//
// sum(x) is the product with a matrix of ones. nvfp4, whose groups are shorter,
// scales the codes, which is exact (formats.h). w_hat is never rounded, and the
// bits of a row of y do not depend on other rows of x, nor on BM, BN and
// `ahead`.
#pragma once

#include "kernels/cuda/formats.h"
#include "kernels/cuda/matmul.h"

namespace nibble {

template <typename T,
          typename Weights,
          int BM,
          int BN,
          int WK,
          int F,
          bool ahead>
struct QmmSkinny {
  using Format = Weights;
  using In = typename Format::template In<T>;
  using Scaling = typename In::Scaling;
  static constexpr int kBits = Format::kBits;
  static constexpr int kGroup = Format::kGroup;
  static constexpr int kBlock = Format::kBlock;
  using Codes = Run<kBits, kBlock>;
  static constexpr int kChunks = Codes::kCodes / 8;
  static constexpr int kTiles = BN / 16;
  static constexpr int kColumns = BM / 8;
  static constexpr int kRows = kTiles * 2;  // of w, for each lane

  // The rows of w, of its groups, and of x that a lane reads.
  struct Sources {
    const uint32* w[kRows];
    int groups[kRows];
    const uint16* x[kColumns];
  };

  using Accumulator = float[kColumns][kTiles][4];
  using Activations = uint4[kColumns][kChunks];

  // Block `i` of those that begin at `from`.
  static NIBBLE_DEVICE void load(Activations& x,
                                 const uint16* const (&from)[kColumns],
                                 int i) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        x[column][chunk] = __ldg(reinterpret_cast<const uint4*>(
            from[column] + (i * kBlock + chunk * 8)));
      }
    }
  }

  // acc += w_hat @ x^T over one block of K.
  static NIBBLE_DEVICE void multiply(Accumulator& acc,
                                     const Codes (&codes)[kRows],
                                     const Scaling (&scaling)[kRows],
                                     const Activations& x,
                                     int t) {
    uint32 a[kTiles][2 * kChunks][4];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      uint32 words[Codes::kWords];
      codes[row].align(words, t);
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        uint32 pairs[4];
        In::unpack(pairs, words, chunk, scaling[row]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[row / 2][2 * chunk + i / 2][row % 2 + i % 2 * 2] = pairs[i];
        }
      }
    }
    constexpr uint32 ones[4] = {T::kOnes, T::kOnes, T::kOnes, T::kOnes};
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      float product[kTiles][4] = {};
      float sum[4] = {};
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        uint32 b[4];
        order<kBits>(b, x[column][chunk]);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            T::mma(product[tile],
                   a[tile][2 * chunk + half],
                   b[2 * half],
                   b[2 * half + 1]);
          }
          if constexpr (Format::kHasBiases) {
            T::mma(sum, ones, b[2 * half], b[2 * half + 1]);
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          acc[column][tile][i] = In::add(acc[column][tile][i],
                                         scaling[2 * tile + i / 2],
                                         product[tile][i],
                                         sum[i]);
        }
      }
    }
  }

  // acc += w_hat @ x^T over kBlocks blocks of K. All of their codes are
  // requested before the first is used.
  template <int kBlocks>
  static NIBBLE_DEVICE void multiply_blocks(
      Accumulator& acc,
      const Sources& from,
      const Matmul<typename Format::Scale>& p,
      int first,
      int lane) {
    const int t = lane % 4;
    const uint32* w[kRows];
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      w[row] = from.w[row] + first * Codes::kBlockWords;
    }
    const uint16* xs[kColumns];
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      xs[column] = from.x[column] + first * kBlock;
    }
    Codes codes[kBlocks][kRows];
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        codes[i][row].load(w[row], i, t);
      }
    }
    // Lane t holds scale and bias of the blocks t, t + 4, ...
    constexpr int kHeld = (kBlocks + 3) / 4;
    uint32 held[kHeld][kRows];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int block = first + min(4 * i + t, kBlocks - 1);
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        held[i][row] = In::hold(p.scales, p.biases, from.groups[row], block);
      }
    }
    Activations x[kBlocks];
    if constexpr (ahead) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        load(x[i], xs, i);
      }
    }
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if constexpr (!ahead) {
        load(x[i], xs, i);
      }
      Scaling scaling[kRows];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        const uint32 both =
            __shfl_sync(0xffffffffu, held[i / 4][row], lane / 4 * 4 + i % 4);
        scaling[row] = In::scaling(both, t);
      }
      multiply(acc, codes[i], scaling, x[i], t);
    }
  }

  static constexpr int kRowsOfTile = BM;
  static constexpr int kSums = BM * BN * WK;  // all warps' sums

  // The sums of each warp [warp][row of x][column of y], for BM rows from m0.
  static NIBBLE_DEVICE void accumulate(const Matmul<typename Format::Scale>& p,
                                       int m0,
                                       float* sums) {
    const int lane = threadIdx.x % 32;
    const int warp = threadIdx.x / 32;
    const int t = lane % 4;
    const int n0 = blockIdx.x * BN;

    // Rows past the end are read as the last one, and not stored.
    Sources from;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      const int n = min(n0 + row * 8 + lane / 4, p.N - 1);
      from.w[row] = p.w + size_t(n) * (p.K / 32 * kBits) + Codes::first_word(t);
      from.groups[row] = n * (p.K / kGroup);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      const int m = min(m0 + column * 8 + lane / 4, p.M - 1);
      from.x[column] = p.x_row(m) + t * Codes::kCodes;
    }

    Accumulator acc = {};
    const int blocks = p.K / kBlock;
    const int flights = blocks / F;
    for (int flight = warp; flight < flights; flight += WK) {
      multiply_blocks<F>(acc, from, p, flight * F, lane);
    }
    for (int i = flights * F + warp; i < blocks; i += WK) {
      multiply_blocks<1>(acc, from, p, i, lane);
    }

    float* mine = sums + warp * (BM * BN);
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int m = column * 8 + t * 2 + i % 2;
          const int n = tile * 16 + lane / 4 + i / 2 * 8;
          mine[m * BN + n] = acc[column][tile][i];
        }
      }
    }
  }

  // The sum of all warps for an element of the tile.
  static NIBBLE_DEVICE float total(const float* sums, int at) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < WK; ++i) {
      sum += sums[i * (BM * BN) + at];
    }
    return sum;
  }

  // Calls use(m, n, at) for the elements of y in the tile, once all warps have
  // their sums.
  template <typename Use>
  static NIBBLE_DEVICE void each(const Matmul<typename Format::Scale>& p,
                                 int m0,
                                 const Use& use) {
    __syncthreads();
    for (int at = threadIdx.x; at < BM * BN; at += WK * 32) {
      const int m = m0 + at / BN;
      const int n = blockIdx.x * BN + at % BN;
      if (m < p.M && n < p.N) {
        use(m, n, at);
      }
    }
  }

  // Computes the rows of y from m0 on, at most BM.
  static NIBBLE_DEVICE void run(const Matmul<typename Format::Scale>& p,
                                int m0,
                                float* sums) {
    accumulate(p, m0, sums);
    each(p, m0, [&](int m, int n, int at) {
      p.template store<T>(m, n, total(sums, at));
    });
  }
};

}  // namespace nibble
