// The facts of a GPU that the planner may use.
#pragma once

#include <cstdint>

#include "kernels/shared.h"

namespace nibble {

// The interface that runs the kernels of a GPU.
enum class Api : uint8_t { kMetal, kCuda };

// Apple's architecture string "applegpu_g14s" is generation 14 (M2), tier 's'.
// Generations: 13 M1, 14 M2, 15 M3, 16 M4, 17 M5. Tiers: 'g' base, 's' Pro and
// Max (mlx #3852 and #3967 have Pros), 'd' Ultra, 'p' phone.
struct DeviceProfile {
  Api api = Api::kMetal;
  // The fields below are of Metal.
  int generation = 13;
  char tier = 'g';
  // Every Apple GPU that MLX supports has at least these (Metal feature set
  // tables, Apple7 and later).
  uint32_t max_threads_per_threadgroup = 1024;
  uint32_t max_threadgroup_bytes = NIBBLE_THREADGROUP_BYTES;
  // Facts that the architecture string lacks. 0 cores: not known.
  uint32_t cores = 0;
  // True if MLX has kernels for the neural accelerators of this GPU's cores.
  bool neural = false;
  // True if MLX lets them round float32 to TF32.
  bool tf32 = true;
  // Of CUDA: true if the tensor cores read shared memory (wgmma), as those of
  // compute capability 9.0 alone do.
  bool wgmma = false;

  bool operator==(const DeviceProfile&) const = default;
};

}  // namespace nibble
