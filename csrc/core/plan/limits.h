// Limits that choose between kernels, where more than one file needs them.
#pragma once

#include <cstdint>

#include "csrc/core/device_profile.h"
#include "csrc/core/problem.h"

namespace nibble {

// The largest number of rows for which qmm_skinny reads w once.
inline constexpr int kLastSkinnyRow = 32;

// From this number of rows on, tiles are faster than one read of w for each
// row, if w is not transposed. MLX's limit on every GPU. Not measured by us.
inline constexpr int kFirstNotTransposedRow = 4;

// Returns the number of cores. If it is not known, returns that of the largest
// GPU of this tier, up to M5: the architecture string does not say which GPU of
// the tier it is, and too many threadgroups cost less than idle cores.
constexpr uint32_t cores(const DeviceProfile& device) {
  if (device.cores > 0) {
    return device.cores;
  }
  switch (device.tier) {
    case 'p':
      return 6;
    case 's':
      return 40;
    case 'd':
      return 80;
    default:
      return 20;
  }
}

// Tiles multiply sorted experts from this number of rows on, in total and for
// each expert: MLX's thresholds for the same choice. Not measured.
inline constexpr int kFirstSortedTile = 16;
inline constexpr int kSortedRowsAnExpert = 4;

// True if products of one row each are computed in tiles, expert by expert. The
// sum of one product then depends on the others.
constexpr bool takes_sorted_tiles(const GatherProblem& p) {
  return p.M == 1 && p.sorted && !p.batch_invariant &&
         p.B >= kFirstSortedTile && p.B / p.experts >= kSortedRowsAnExpert;
}

// Threadgroups have 128 threads each. That makes 16 simdgroups, four for each
// of a core's four schedulers, to hide memory latency. metal-benchmarks: a core
// needs 8 to 24 for full use. Not measured.
inline constexpr uint32_t kThreadgroupsPerCore = 4;
inline constexpr uint32_t kSimdgroupsPerCore = 4 * kThreadgroupsPerCore;

}  // namespace nibble
