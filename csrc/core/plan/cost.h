// The cost of tiles: predicted cycles of a GPU, for products of many rows.
//
// From the model of time (docs/internals/simt.md): counted instructions and
// published throughputs, float16; integers of 4 bits in groups of 64, or
// floats. Nobody has measured it with our kernels.
// tests/unit/bench/test_predict.py compares the constants with the model. A GPU
// is as slow as the core with the most threadgroups, so the size that wins
// depends on how threadgroups divide by cores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "csrc/core/device_profile.h"
#include "csrc/core/plan/limits.h"
#include "csrc/core/problem.h"
#include "csrc/core/tiles.h"

namespace nibble {

// How a core computes 32 x 32 of y.
struct TileCost {
  double fixed;       // cycles, whatever K is
  double arithmetic;  // cycles for a column of K, beside the 8x8 products
  int simdgroups;     // of a threadgroup
  int resident;  // simdgroups that a core's threadgroup memory has room for
};

// Arithmetic for a column of K, by kernel, and fixed cycles that depend on the
// mode.
struct DecodeCost {
  double skinny_fixed, skinny;
  double tiles_64x64, tiles_64x32, tiles_32x32;
  double sorted_16x32, sorted_32x32;  // experts
  double mlx_fixed, mlx_tiles, mlx_sorted;
};

// Wide integers take longer to decode, which matters where a tile is small.
constexpr DecodeCost decode_cost(const QuantFormat& format) {
  switch (format.mode) {
    case Mode::kAffine:
    case Mode::kSymmetric:
      break;
    case Mode::kMxfp4:
      return {464, 1.17, 0.84, 0.98, 1.96, 3.36, 1.96, 120, 1.91, 4.38};
    case Mode::kNvfp4:
      return {528, 1.31, 0.91, 1.07, 2.13, 3.62, 2.13, 132, 2.12, 4.59};
    case Mode::kMxfp8:
      return {384, 1.54, 1.12, 1.35, 2.71, 4.48, 2.71, 108, 3.12, 6.12};
  }
  return format.bits > 4
             ? DecodeCost{464, 1.1, 0.79, 0.9, 1.8, 3.4, 2.3, 116, 1.0, 2.0}
             : DecodeCost{464, 1.1, 0.79, 0.9, 1.8, 3.1, 1.8, 116, 1.0, 2.0};
}

constexpr TileCost skinny_cost(const QuantFormat& format) {
  DecodeCost decode = decode_cost(format);
  return {decode.skinny_fixed, decode.skinny, 8, 24};
}
constexpr TileCost cost_of(const Tile& tile, const QuantFormat& format) {
  DecodeCost decode = decode_cost(format);
  return tile.BM * tile.BN == 64 * 64 ? TileCost{47, decode.tiles_64x64, 4, 12}
         : tile.BM * tile.BN == 64 * 32
             ? TileCost{82, decode.tiles_64x32, 4, 16}
             : TileCost{144, decode.tiles_32x32, 4, 24};
}
constexpr TileCost mlx_cost(const QuantFormat& format) {
  DecodeCost decode = decode_cost(format);
  return {decode.mlx_fixed, decode.mlx_tiles, 4, 48};
}

// Tiles of sorted experts.
inline constexpr Tile kMlxSortedTile{16, 32, 32, 1, 2};
constexpr TileCost sorted_cost_of(const Tile& tile, const QuantFormat& format) {
  DecodeCost decode = decode_cost(format);
  return tile.BM == 16 ? TileCost{212, decode.sorted_16x32, 2, 16}
                       : TileCost{212, decode.sorted_32x32, 4, 24};
}
constexpr TileCost mlx_sorted_cost(const QuantFormat& format) {
  return {148, decode_cost(format).mlx_sorted, 2, 32};
}

// group_gradient, where a row of x takes the place of a column of K.
inline constexpr TileCost kGradientCost{77, 0.38, 4, 240};

// Cycles of the 32 products of 18 cycles that four schedulers share.
inline constexpr double kProductCycles = 9.0;

// Cycles of a launch that waits for the one before it: 3 us. An assumption.
inline constexpr double kLaunchCycles = 4200;

// Bytes that memory moves in a cycle, for each core: 6.6 on M1, 9.3 on M4 Pro.
inline constexpr double kBytesPerCycle = 7;

// Returns the share of the full rate with this number of simdgroups in a core:
// metal-benchmarks, FFMA with four independent instructions. The model of time
// asks this function.
constexpr double occupancy(double simdgroups) {
  constexpr double kFour = 1 / 2.75;
  constexpr double kEight = 1 / 1.6;
  return simdgroups < 4    ? kFour * simdgroups / 4
         : simdgroups < 8  ? std::lerp(kFour, kEight, (simdgroups - 4) / 4)
         : simdgroups < 24 ? std::lerp(kEight, 1.0, (simdgroups - 8) / 16)
                           : 1;
}

// Returns the cycles of a launch whose threadgroups compute `elements` of y
// each, over `columns` of K.
constexpr double launch_cycles(uint64_t threadgroups,
                               uint32_t cores,
                               int elements,
                               int columns,
                               const TileCost& cost) {
  auto turns = static_cast<double>((threadgroups + cores - 1) / cores);
  double each = std::max(1.0, static_cast<double>(threadgroups) / cores);
  double busy = std::min<double>(cost.resident, each * cost.simdgroups);
  // Products need 8 simdgroups: each takes 36 cycles, and 18 of a scheduler.
  double arithmetic = cost.fixed + columns * cost.arithmetic;
  double products = columns * kProductCycles;
  double block =
      arithmetic / occupancy(busy) + products / std::min(1.0, busy / 8);
  return kLaunchCycles + turns * elements / 1024 * block;
}

// Returns the cycles of the launch that adds the sums of a split K.
constexpr double sums_cycles(const MatmulProblem& p,
                             int parts,
                             uint32_t cores) {
  double bytes = 4.0 * parts * p.M * p.N;
  return kLaunchCycles + bytes / (kBytesPerCycle * cores);
}

// Returns the cycles of tiles with K split into `parts` of `columns`.
constexpr double cycles(const MatmulProblem& p,
                        const Tile& tile,
                        int parts,
                        int columns,
                        uint32_t cores) {
  uint64_t tiles = tile.grid({p.N, p.M, p.batch.size}).volume();
  double one = launch_cycles(tiles * parts,
                             cores,
                             tile.BM * tile.BN,
                             columns,
                             cost_of(tile, p.format));
  return one + (parts > 1 ? sums_cycles(p, parts, cores) : 0);
}

constexpr double cycles(const MatmulProblem& p,
                        const SkinnyTile& tile,
                        uint32_t cores) {
  return launch_cycles(tile.grid({p.N, p.M, p.batch.size}).volume(),
                       cores,
                       tile.BM * tile.BN,
                       p.K,
                       skinny_cost(p.format));
}

// Returns the cycles of the best plan for more than 16 rows (dense.cpp). `p`
// must come from merge_rows(), here and below.
double least_cycles(const MatmulProblem& p, const DeviceProfile& device);

// True if MLX's tiles are predicted to be faster than the best plan of ours, by
// more than a tie.
bool mlx_tiles_are_faster(const MatmulProblem& p, const DeviceProfile& device);
bool mlx_tiles_are_faster(const GatherProblem& p, const DeviceProfile& device);

}  // namespace nibble
