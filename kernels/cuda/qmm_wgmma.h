// y = x @ w_hat^T for many rows of x, on the tensor cores of compute capability
// 9.0. Weights are decoded into shared memory, rounded to the type of x.
//
// A block of 256 threads computes BM x (64 * WN) of y. Each of its WN * WK
// groups of 128 threads decodes 64 rows of w and multiplies them by all BM rows
// of x, 64 columns (a step) at a time. The WK groups of the same rows take
// steps in turn, and their sums are added in a fixed order.
//
// Three things happen at once. While the tensor cores multiply step r, threads
// decode the codes of step r + 1, and copies of x and of codes that are kAhead
// steps away are on their way:
//
//   wait for copies, barrier | start step r | wait for step r - 1 |
//   start copies | decode step r + 1 | ...
//
// K is a multiple of 64.
#pragma once

#include "kernels/cuda/formats.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/wgmma.h"

namespace nibble {

template <typename T, typename Weights, int BM, int WN, int WK>
struct QmmWgmma {
  using Format = Weights;
  using In = typename Format::template In<T>;
  using Operands = Matmul<typename Format::Scale>;
  static constexpr int kRowsOfTile = BM;
  static constexpr int BN = 64 * WN;
  static constexpr int kThreads = 128 * WN * WK;
  static constexpr int kStep = 64;
  static constexpr int kBits = Format::kBits;

  // Steps of x and, one more, of codes that are copied ahead. A step of x is
  // read until the second barrier after its own, a step of codes until the
  // next.
  static constexpr int kAhead = 2;
  static constexpr int kXs = kAhead + 2;
  static constexpr int kCodes = kAhead + 1;
  static constexpr int kWs = 2;

  // Bytes of one step in shared memory, and where each kind begins: x for each
  // share of K, then w_hat and codes for each group of threads.
  static constexpr uint32 kXBytes = BM * 128;
  static constexpr uint32 kWBytes = 64 * 128;
  static constexpr uint32 kCodeBytes = 64 * 8 * kBits;
  static constexpr uint32 kWBegin = WK * kXs * kXBytes;
  static constexpr uint32 kCodesBegin = kWBegin + WN * WK * kWs * kWBytes;

  // A row of sums has four more than it needs, for the banks.
  static constexpr int kSumsStride = BN + 4;

  // One of the groups of threads.
  struct Group {
    const Operands& p;
    int m0, n0;        // its first rows of x and w
    int thread;        // of 128
    int column, share; // its place among WN and WK
    uint32 x, w, codes;  // its shared memory

    NIBBLE_DEVICE int steps() const { return p.K / kStep; }
    // The step of K that it takes in turn `r`. Past the end, it reads the last,
    // and multiplies zeros by zeros.
    NIBBLE_DEVICE int step(int r) const {
      return min(r * WK + share, steps() - 1);
    }
    NIBBLE_DEVICE bool ends(int r) const {
      return WK > 1 && r * WK + share >= steps();
    }
    NIBBLE_DEVICE int row_of_w(int row) const {
      return min(n0 + row, p.N - 1);
    }

    // The groups of one share copy its x together.
    NIBBLE_DEVICE void copy_x(int r) const {
      const uint32 to = x + r % kXs * kXBytes;
      const uint16* from = p.x + step(r) * kStep;
      const int bytes = ends(r) ? 0 : 16;
#pragma unroll
      for (int i = 0; i < BM / 16 / WN; ++i) {
        const int at = (i * WN + column) * 128 + thread;
        const int row = at / 8, chunk = at % 8;
        copy_ahead<16>(
            to + swizzled(row, chunk),
            from + size_t(min(m0 + row, p.M - 1)) * p.K + chunk * 8,
            bytes);
      }
    }

    NIBBLE_DEVICE void copy_codes(int r) const {
      constexpr int kBytes = kBits % 2 ? 8 : 16;  // as rows are aligned
      constexpr int kPieces = 8 * kBits / kBytes;  // of a row
      const uint32 to = codes + r % kCodes * kCodeBytes;
      const int first = step(r) * (2 * kBits);
#pragma unroll
      for (int at = thread; at < 64 * kPieces; at += 128) {
        const int row = at / kPieces, piece = at % kPieces;
        const uint32* from =
            p.w + size_t(row_of_w(row)) * (p.K / 32 * kBits) + first;
        copy_ahead<kBytes>(
            to + at * kBytes, from + piece * (kBytes / 4), kBytes);
      }
    }

    // The scales of the codes that this thread decodes: the chunk
    // `thread % 8` of 8 columns of every 16th row.
    NIBBLE_DEVICE void load_scales(uint32 (&held)[4], int r) const {
      const int group = (step(r) * kStep + thread % 8 * 8) / Format::kGroup;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = row_of_w(i * 16 + thread / 8);
        held[i] = In::at(
            p.scales, p.biases, size_t(n) * (p.K / Format::kGroup) + group);
      }
    }

    NIBBLE_DEVICE void decode(const uint32 (&held)[4], int r) const {
      const uint32 from = codes + r % kCodes * kCodeBytes;
      const uint32 to = w + r % kWs * kWBytes;
      const int chunk = thread % 8;
      const int shift = chunk * kBits % 4 * 8;
      const bool more = shift + 8 * kBits > 32;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = i * 16 + thread / 8;
        const uint32 word = from + row * (8 * kBits) + chunk * kBits / 4 * 4;
        uint32 words[2], pairs[4];
        eight_codes(
            words, load_shared(word), more ? load_shared(word + 4) : 0, shift);
        In::decode(pairs, words, held[i]);
        store_shared(
            to + swizzled(row, chunk),
            ends(r) ? make_uint4(0, 0, 0, 0) : in_turn<kBits>(pairs));
      }
    }

    NIBBLE_DEVICE void multiply(float (&acc)[BM / 2], int r) const {
      const uint32 a = w + r % kWs * kWBytes;
      const uint32 b = x + r % kXs * kXBytes;
      wgmma_fence();
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        wgmma<BM, T::kWide>(
            acc, descriptor(a + i * 32), descriptor(b + i * 32));
      }
      wgmma_commit();
    }

    // The other threads of the group have waited for their products, too.
    NIBBLE_DEVICE void meet() const {
      asm volatile("bar.sync %0, 128;" ::"r"(1 + share * WN + column)
                   : "memory");
    }
  };

  static NIBBLE_DEVICE uint32 load_shared(uint32 address) {
    uint32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address));
    return v;
  }
  static NIBBLE_DEVICE void store_shared(uint32 address, const uint4& v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address),
                 "r"(v.x),
                 "r"(v.y),
                 "r"(v.z),
                 "r"(v.w)
                 : "memory");
  }

  // Computes the rows of y from m0 on, at most BM.
  static NIBBLE_DEVICE void run(const Operands& p, int m0, float* memory) {
    // Swizzled rows begin at a multiple of 1024 bytes.
    const uint32 begin =
        (uint32(__cvta_generic_to_shared(memory)) + 1023) / 1024 * 1024;
    const int index = threadIdx.x / 128;
    const int column = index % WN, share = index / WN;
    const int n0 = blockIdx.x * BN + column * 64;
    const Group group{p,
                      m0,
                      n0,
                      int(threadIdx.x % 128),
                      column,
                      share,
                      begin + share * (kXs * kXBytes),
                      begin + kWBegin + index * (kWs * kWBytes),
                      begin + kCodesBegin + index * (kCodes * kCodeBytes)};
    const int turns = (group.steps() + WK - 1) / WK;

    // The copies of a turn are x of one step and codes of the next.
    group.copy_codes(0);
#pragma unroll
    for (int r = 0; r < kAhead; ++r) {
      group.copy_x(r);
      group.copy_codes(r + 1);
      copy_commit();
    }
    uint32 held[4];
    group.load_scales(held, 0);
    copy_wait<kAhead - 1>();
    __syncthreads();
    group.decode(held, 0);
    group.load_scales(held, 1);

    float acc[BM / 2] = {};
    for (int r = 0; r < turns; ++r) {
      copy_wait<kAhead - 1>();
      fence_for_wgmma();
      __syncthreads();
      group.multiply(acc, r);
      wgmma_wait<1>();
      group.meet();
      group.copy_x(r + kAhead);
      group.copy_codes(r + kAhead + 1);
      copy_commit();
      group.decode(held, r + 1);
      group.load_scales(held, r + 2);
    }
    wgmma_wait<0>();
    copy_wait<0>();
    __syncthreads();
    add_up(acc, group, memory);
  }

  // Stores y from the sums of all groups, [share][row of x][column of y].
  static NIBBLE_DEVICE void add_up(const float (&acc)[BM / 2],
                                   const Group& group,
                                   float* sums) {
    const Operands& p = group.p;
    const int lane = threadIdx.x % 32;
    float* mine = sums + group.share * (BM * kSumsStride) + group.column * 64 +
                  group.thread / 32 * 16 + lane / 4;
#pragma unroll
    for (int i = 0; i < BM / 2; ++i) {
      const int m = i / 4 * 8 + lane % 4 * 2 + i % 2;
      mine[m * kSumsStride + i / 2 % 2 * 8] = acc[i];
    }
    __syncthreads();
    for (int at = threadIdx.x; at < BM * BN; at += kThreads) {
      const int row = at / BN, column = at % BN;
      const int m = group.m0 + row, n = blockIdx.x * BN + column;
      if (m >= p.M || n >= p.N) {
        continue;
      }
      float sum = 0;
#pragma unroll
      for (int i = 0; i < WK; ++i) {
        sum += sums[(i * BM + row) * kSumsStride + column];
      }
      p.template store<T>(m, n, sum);
    }
  }
};

}  // namespace nibble
