// Shapes of threadgroups: the constants of the kernels and the one statement
// of what a tile may be.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "csrc/core/device_profile.h"
#include "csrc/core/dtype.h"
#include "csrc/core/format.h"
#include "kernels/shared.h"

namespace nibble {

// Where kernels want an operand to begin, in bytes; elsewhere it is copied.
inline constexpr size_t kOperandAlignment = NIBBLE_ALIGNMENT;

// qmv_multi: rows of x from one pass over w. 5 and 7 rows go to the next form:
// one row too many costs a multiplication a code, another form a compilation.
inline constexpr int kMultiRows[] = {2, 3, 4, 6, 8};
// The largest of these forms that joint products come in: beyond, the planner
// takes qmm_skinny.
inline constexpr int kLastJointForm = 6;

inline constexpr int kFragment = 8;

// qmm_skinny: a threadgroup of WK simdgroups, which share out K, computes
// BM x BN of y.
struct SkinnyTile {
  int BM = 8, BN = 32, WK = 8;

  bool operator==(const SkinnyTile&) const = default;

  std::vector<int> shape() const { return {BM, BN, WK}; }
  constexpr uint32_t threads() const {
    return static_cast<uint32_t>(WK * NIBBLE_SIMD_WIDTH);
  }
  // Half of the simdgroups hand their sums, in float, to the other half; and
  // before, all but the first a line of 64 bytes of each row of w.
  uint32_t threadgroup_bytes(int bits, int K) const {
    auto sums = static_cast<uint32_t>(BM * BN * WK / 2) * sizeof(float);
    bool lines = nibble_skinny_cuts_lines(bits, K, WK);
    return std::max<uint32_t>(sums, lines ? (WK - 1) * BN * 64 : 0);
  }
};

// BN of 32: four fragments of w for each one of x. WK of 8: llama.cpp's and
// avlp12's choice for the same split on M3; small N still fills the cores. One
// WK for every BM, so that a row's sum is the same whatever the number of rows.
inline constexpr SkinnyTile kSkinnyTiles[] = {
    {8, 32, 8}, {16, 32, 8}, {32, 32, 8}};

// qmm: a threadgroup of WM x WN simdgroups computes BM x BN of y, BK of K at a
// time, in 8x8 fragments.
struct Tile {
  int BM = 32, BN = 32, BK = 32;
  int WM = 2, WN = 2;

  bool operator==(const Tile&) const = default;

  std::vector<int> shape() const { return {BM, BN, BK, WM, WN}; }
  constexpr uint32_t threads() const {
    return static_cast<uint32_t>(WM * WN * NIBBLE_SIMD_WIDTH);
  }
  // Two blocks each of x and w: one is multiplied while the next arrives.
  // Rows are padded by 16 bytes, so that the eight rows of a fragment start in
  // different banks.
  constexpr uint32_t threadgroup_bytes(Dtype dtype) const {
    auto item = static_cast<uint32_t>(size_of(dtype));
    return 2 * static_cast<uint32_t>(BM + BN) * (BK * item + 16);
  }
};

// The tiles that instances exist for, the largest first. 64x64: half of the
// threadgroup traffic a product of the 32x32 that MLX uses everywhere, and the
// size that llama.cpp (64x32) and uzu (64x64) found best for long prompts on
// M1 to M4. In float32 it does not fit.
inline constexpr Tile kTiles[] = {
    {64, 64, 32, 2, 2}, {64, 32, 32, 2, 2}, {32, 32, 32, 2, 2}};

// qmm_splitk: the largest, for its parts fill the cores whatever its size.
constexpr const Tile& split_tile(Dtype dtype) {
  return kTiles[dtype == Dtype::kFloat32 ? 1 : 0];
}

// gather_qmm: 32 rows, for a tile goes through K once for every expert in it,
// and experts have few rows each.
inline constexpr Tile kGatherTile{32, 32, 32, 2, 2};

// qmm_n: BM x BN of y by BK rows of w. BN codes are whole cache lines of 64
// bytes of a row, for another threadgroup would read the rest of a line again:
// one line at 8, 4 and 2 bits, three at 3 and 6, five at 5. BK is what two
// blocks of w then leave room for, or one, for two of 512 columns in float32 do
// not fit; BK * BN for each barrier is never less than 2048, as many products
// as 64 columns and 32 rows. Eight simdgroups at most: what a pipeline may
// launch shrinks with its registers.
constexpr Tile not_transposed_tile(Dtype dtype, const QuantFormat& format) {
  bool wide = dtype == Dtype::kFloat32;
  switch (format.bits) {
    case 8:
      return {32, 64, 32, 2, 2};
    case 4:
      return {32, 128, wide ? 16 : 32, 1, 4};
    case 3:
    case 5:
      return {32, 512, 8, 1, 8};
    default:
      return {32, 256, wide ? 8 : 16, 1, 8};
  }
}

constexpr uint32_t not_transposed_threadgroup_bytes(const Tile& tile,
                                                    Dtype dtype) {
  auto item = static_cast<uint32_t>(size_of(dtype));
  uint32_t stage =
      tile.BM * (tile.BK * item + 16) + tile.BK * (tile.BN * item + 16);
  return 2 * stage <= NIBBLE_THREADGROUP_BYTES ? 2 * stage : stage;
}

// The single statement of what makes a tile valid for a format on a device.
constexpr bool supports(const Tile& tile,
                        Dtype dtype,
                        const QuantFormat& format,
                        const DeviceProfile& device) {
  bool fragments = tile.BM % (tile.WM * kFragment) == 0 &&
                   tile.BN % (tile.WN * kFragment) == 0 &&
                   tile.BK % kFragment == 0;
  // Every thread moves 16 bytes of x, and four threads share a row of w.
  auto item = static_cast<int>(size_of(dtype));
  auto threads = static_cast<int>(tile.threads());
  bool shares = tile.BM * tile.BK * item % (16 * threads) == 0 &&
                tile.BN % (threads / 4) == 0;
  // A block of K lies inside one group and is made of whole words.
  bool groups =
      format.group_size % tile.BK == 0 && tile.BK * format.bits % 32 == 0;
  bool fits = tile.threads() <= device.max_threads_per_threadgroup &&
              tile.threadgroup_bytes(dtype) <= device.max_threadgroup_bytes;
  return fragments && shares && groups && fits;
}

}  // namespace nibble
