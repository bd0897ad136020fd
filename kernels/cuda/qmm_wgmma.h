// y = x @ w_hat^T for many rows of x, on the tensor cores of compute capability
// 9.0. Weights are decoded into registers, rounded to the type of x.
//
// A block computes 256 or 128 rows of y and 128 columns, 64 columns of w (a
// step) at a time. One thread copies x and codes to shared memory, some steps
// ahead. Two groups of 128 threads decode 64 rows of w each, and their tensor
// cores multiply them by x while they decode the next step:
//
//   one thread          wait for a free stage | copy a step into it
//   the others          wait for a step | decode it | start its products |
//                       wait for those of the step before | free its stage
//
// Two pairs of groups take the steps in turn, and wait for their own products:
// one pair decodes while the products of the other are computed. Their sums are
// added at the end.
//
// The instruction takes w [64, 16] from registers and x [rows, 16] from shared
// memory, so y^T is computed. A lane needs the codes 2 * t, 2 * t + 1 and eight
// more of 16, t being l % 4: the byte t of each word.
//
// K is a multiple of 64. Only 4 bits with biases are supported.
#pragma once

#include "kernels/cuda/formats.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/wgmma.h"
#include "kernels/cuda/wgmma_lane.h"
#include "kernels/cuda/wgmma_tile.h"

namespace nibble {

template <typename T, typename Weights, int rows, int pairs>
struct QmmWgmma {
  using Format = Weights;
  using Lane = WgmmaLane<T, Format>;
  using Operands = Matmul<typename Format::Scale>;
  static_assert(Format::kBits == 4 && Format::kHasBiases);
  static constexpr int kThreads = NIBBLE_WGMMA_THREADS(pairs);
  static constexpr int kColumnsOfTile = NIBBLE_WGMMA_COLUMNS;
  static constexpr int kStep = NIBBLE_WGMMA_STEP;
  static constexpr int kGroups = Lane::kGroups;  // in a step

  // Stages of x [rows, 64] and of codes [128, 64]. The sums take their place at
  // the end; a row of them has four more than it needs, for the banks.
  static constexpr int kRowsOfBox = NIBBLE_WGMMA_BOX_ROWS;
  static constexpr uint32 kBoxBytes = kRowsOfBox * 128;
  static constexpr uint32 kXBytes = rows * 128;
  static constexpr uint32 kCodeBytes = kColumnsOfTile * 32;
  static constexpr uint32 kStageBytes = kXBytes + kCodeBytes;
  static constexpr int kStages = NIBBLE_WGMMA_STAGE_BYTES / kStageBytes;
  static constexpr int kSumsStride = kColumnsOfTile + 4;
  static constexpr int kSums = rows * kSumsStride;  // of a pair
  static_assert(pairs * kSums * 4 <= NIBBLE_WGMMA_STAGE_BYTES);
  // Steps of a group whose products are not waited for.
  static constexpr int kAhead = pairs == 1 ? 1 : 0;

  struct Block {
    const Operands& p;
    const TensorMap &x, &w;
    int m0, n0;
    int steps;
    uint32 stages, full, free;
  };

  static NIBBLE_DEVICE void copy(const Block& b) {
    // Boxes that begin below the last row of x are left out: a copy of rows
    // that do not exist takes longer than others.
    const int boxes =
        min((b.p.M - b.m0 + kRowsOfBox - 1) / kRowsOfBox, rows / kRowsOfBox);
    const uint32 bytes = boxes * kBoxBytes + kCodeBytes;
    for (int s = 0; s < b.steps; ++s) {
      const int stage = s % kStages;
      barrier_wait(b.free + 8 * stage, (s / kStages + 1) % 2);
      const uint32 to = b.stages + stage * kStageBytes;
      const uint32 full = b.full + 8 * stage;
      barrier_expect(full, bytes);
      for (int i = 0; i < boxes; ++i) {
        copy_box(
            to + i * kBoxBytes, b.x, s * kStep, b.m0 + i * kRowsOfBox, full);
      }
      copy_box(to + kXBytes, b.w, s * (kStep / 8), b.n0, full);
    }
  }

  static NIBBLE_DEVICE void multiply(float (&acc)[rows / 2],
                                     const Block& b,
                                     int group) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const uint32 row = group % 2 * 64 + warp * 16 + lane / 4;
    const size_t groups = b.p.K / Format::kGroup;
    const Lane mine{b.p,
                    BytePairs<T>::choose(lane % 4),
                    row,
                    {min(b.n0 + int(row), b.p.N - 1) * groups,
                     min(b.n0 + int(row) + 8, b.p.N - 1) * groups}};
    uint32 next[2][kGroups];
    mine.hold(next, min(group / 2, b.steps - 1));
    auto step = [&](uint32(&a)[4][4], int s) {
      const int stage = s % kStages;
      uint32 held[2][kGroups];
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        held[i / kGroups][i % kGroups] = next[i / kGroups][i % kGroups];
      }
      mine.hold(next, min(s + pairs, b.steps - 1));
      barrier_wait(b.full + 8 * stage, s / kStages % 2);
      const uint32 x = b.stages + stage * kStageBytes;
      mine.decode(a, held, x + kXBytes);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        wgmma<T>(acc, a[k], descriptor(x + k * 32));
      }
      wgmma_commit();
      wgmma_wait<kAhead>();
      if (s >= kAhead && threadIdx.x % 128 == 0) {
        barrier_arrive(b.free + 8 * ((s - kAhead) % kStages));
      }
    };
    uint32 even[4][4];
    if constexpr (pairs == 1) {
      // The products of a step read one while the next is decoded.
      uint32 odd[4][4];
      int s = 0;
      for (; s + 1 < b.steps; s += 2) {
        step(even, s);
        step(odd, s + 1);
      }
      if (s < b.steps) {
        step(even, s);
      }
      wgmma_wait<0>();
    } else {
      for (int s = group / 2; s < b.steps; s += pairs) {
        step(even, s);
      }
    }
  }

  // Waits for all groups but the one that copies.
  static NIBBLE_DEVICE void meet() {
    asm volatile("bar.sync 1, %0;" ::"n"(kThreads - 128) : "memory");
  }

  // Keeps the sums of a group's 64 columns, [row of x][column].
  static NIBBLE_DEVICE void keep(const float (&acc)[rows / 2],
                                 float* sums,
                                 int group) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const int column = group % 2 * 64 + warp * 16 + lane / 4;
    float* mine = sums + group / 2 * kSums + column;
#pragma unroll
    for (int i = 0; i < rows / 2; ++i) {
      const int m = i / 4 * 8 + lane % 4 * 2 + i % 2;
      mine[m * kSumsStride + i / 2 % 2 * 8] = acc[i];
    }
  }

  static NIBBLE_DEVICE void store(const Block& b, const float* sums) {
    constexpr int kFours = kColumnsOfTile / 4;
    const Operands& p = b.p;
    const bool plain = !p.bias && !p.residual && p.N % 4 == 0;
#pragma unroll 4
    for (int at = threadIdx.x - 128; at < rows * kFours; at += kThreads - 128) {
      const int row = at / kFours, column = at % kFours * 4;
      const int m = b.m0 + row, n = b.n0 + column;
      if (m >= p.M || n >= p.N) {
        continue;
      }
      float sum[4] = {};
#pragma unroll
      for (int pair = 0; pair < pairs; ++pair) {
        const float4 v = *reinterpret_cast<const float4*>(
            sums + pair * kSums + row * kSumsStride + column);
        sum[0] += v.x;
        sum[1] += v.y;
        sum[2] += v.z;
        sum[3] += v.w;
      }
      if (plain) {
        uint2 four;
        four.x = T::from_float(sum[0]) | uint32(T::from_float(sum[1])) << 16;
        four.y = T::from_float(sum[2]) | uint32(T::from_float(sum[3])) << 16;
        *reinterpret_cast<uint2*>(p.y + size_t(m) * p.N + n) = four;
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (n + i < p.N) {
            p.template store<T>(m, n + i, sum[i]);
          }
        }
      }
    }
  }

  static NIBBLE_DEVICE void run(const Operands& p,
                                const TensorMap& x,
                                const TensorMap& w,
                                float* memory) {
    __shared__ __align__(8) unsigned long long barriers[2 * kStages];
    // Swizzled rows begin at a multiple of 1024 bytes.
    const uint32 given = uint32(__cvta_generic_to_shared(memory));
    const uint32 stages = (given + 1023) / 1024 * 1024;
    float* sums = memory + (stages - given) / 4;
    const int of_rows = (p.M + rows - 1) / rows;
    const uint32 full = uint32(__cvta_generic_to_shared(barriers));
    // Blocks that follow each other read the same rows of w.
    const Block b{p,
                  x,
                  w,
                  int(blockIdx.x) % of_rows * rows,
                  int(blockIdx.x) / of_rows * kColumnsOfTile,
                  p.K / kStep,
                  stages,
                  full,
                  full + 8 * kStages};
    if (threadIdx.x == 0) {
#pragma unroll
      for (int i = 0; i < kStages; ++i) {
        barrier_begin(b.full + 8 * i, 1);
        barrier_begin(b.free + 8 * i, 2);
      }
      barriers_begun();
    }
    __syncthreads();
    const int group = int(threadIdx.x / 128) - 1;
    if (group < 0) {
      give_registers<pairs == 1 ? 40 : 24>();
      if (threadIdx.x == 0) {
        copy(b);
      }
    } else {
      take_registers<pairs == 1 ? 232 : 112>();
      float acc[rows / 2] = {};
      multiply(acc, b, group);
      // Stages are sums from now on: all groups have read them.
      meet();
      keep(acc, sums, group);
      meet();
      store(b, sums);
    }
  }
};

}  // namespace nibble

// A kernel of one product.
#define NIBBLE_WGMMA_KERNEL(name, threads, blocks, ...)         \
  extern "C" __global__ void __launch_bounds__(threads, blocks) \
      name(const nibble::uint32* w,                             \
           const nibble::__VA_ARGS__::Format::Scale* scales,    \
           const nibble::__VA_ARGS__::Format::Scale* biases,    \
           const nibble::uint16* x,                             \
           const nibble::uint16* bias,                          \
           const nibble::uint16* residual,                      \
           nibble::uint16* y,                                   \
           MatmulParams p,                                      \
           const __grid_constant__ nibble::TensorMap x_map,     \
           const __grid_constant__ nibble::TensorMap w_map) {   \
    extern __shared__ float memory[];                           \
    nibble::__VA_ARGS__::run(                                   \
        {x,                                                     \
         w,                                                     \
         scales,                                                \
         biases,                                                \
         p.epilogue & NIBBLE_BIAS ? bias : nullptr,             \
         p.epilogue & NIBBLE_RESIDUAL ? residual : nullptr,     \
         y,                                                     \
         p.M,                                                   \
         p.N,                                                   \
         p.K,                                                   \
         nullptr},                                              \
        x_map,                                                  \
        w_map,                                                  \
        memory);                                                \
  }
