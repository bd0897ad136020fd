// Limits that choose between kernels, where more than one file needs them.
#pragma once

#include <cstdint>

#include "csrc/core/device_profile.h"

namespace nibble {

// The largest number of rows for which qmm_skinny reads w once.
inline constexpr int kLastSkinnyRow = 32;

// From this number of rows on, tiles are faster than one read of w for each
// row, if w is not transposed. MLX's limit on every GPU. Not measured by us.
inline constexpr int kFirstNotTransposedRow = 4;

// Returns the cores of the largest GPU of this tier, up to M5. The architecture
// string does not say which GPU of the tier it is, and too many threadgroups
// cost less than idle cores.
constexpr uint32_t most_cores(const DeviceProfile& device) {
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

// Threadgroups have 128 threads each. That makes 16 simdgroups, four for each
// of a core's four schedulers, to hide memory latency. metal-benchmarks: a core
// needs 8 to 24 for full use. Not measured.
inline constexpr uint32_t kThreadgroupsPerCore = 4;
inline constexpr uint32_t kSimdgroupsPerCore = 4 * kThreadgroupsPerCore;

}  // namespace nibble
