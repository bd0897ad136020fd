// How a lane of cuda_qmm_wgmma decodes its part of w.
#pragma once

#include "kernels/cuda/formats.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/wgmma_tile.h"

namespace nibble {

// Two codes of a word as numbers: those of the byte t. choose() is for pick().
template <typename T>
struct BytePairs {
  static NIBBLE_DEVICE uint32 choose(int t) {
    return t * 0x11 | (t + 4) * 0x1100;
  }
  static NIBBLE_DEVICE uint32 pick(uint32 word, uint32 chosen) {
    if constexpr (T::kWide) {
      // 128 + code, and 16 + code of a code three places to the left.
      const uint32 pair =
          masked<0x0078000f, 0x41804300>(__byte_perm(word, word >> 1, chosen));
      return T::fma(pair, T::kOnes, 0xc180c300);
    } else {
      // 1024 + code, and 1024 + 16 * code.
      const uint32 pair =
          masked<0x00f0000f, 0x64006400>(__byte_perm(word, word, chosen));
      return T::fma(pair, 0x2c003c00, 0xd400e400);
    }
  }
};

NIBBLE_DEVICE void load_shared(uint32 (&words)[8], uint32 address) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[i]),
                   "=r"(words[i + 1]),
                   "=r"(words[i + 2]),
                   "=r"(words[i + 3])
                 : "r"(address + i * 4)
                 : "memory");
  }
}

// The rows of w that a lane decodes, and their groups.
template <typename T, typename Format>
struct WgmmaLane {
  using In = typename Format::template In<T>;
  static constexpr int kStep = NIBBLE_WGMMA_STEP;
  static constexpr int kGroups =  // in a step
      Format::kGroup < kStep ? kStep / Format::kGroup : 1;

  const Matmul<typename Format::Scale>& p;
  uint32 chosen;
  uint32 row;       // in the tile; the other is eight below
  size_t group[2];  // the first of each row

  NIBBLE_DEVICE void hold(uint32 (&held)[2][kGroups], int s) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        held[i][g] = In::at(
            p.scales, p.biases, group[i] + s * kStep / Format::kGroup + g);
      }
    }
  }
  NIBBLE_DEVICE void decode(uint32 (&a)[4][4],
                            const uint32 (&held)[2][kGroups],
                            uint32 codes) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32 words[8];
      load_shared(words, codes + (row + i * 8) * 32);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint32 group = held[i][k * kGroups / 4];
        const uint32 scale = __byte_perm(group, 0, 0x1010);
        const uint32 bias = __byte_perm(group, 0, 0x3232);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          a[k][2 * j + i] =
              T::fma(BytePairs<T>::pick(words[2 * k + j], chosen), scale, bias);
        }
      }
    }
  }
};

}  // namespace nibble
