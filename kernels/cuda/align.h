// Copies an operand that does not begin at a multiple of NIBBLE_ALIGNMENT.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/shared.h"

extern "C" __global__ void __launch_bounds__(NIBBLE_ALIGN_THREADS)
    cuda_align(const nibble::uint16* from, nibble::uint16* to, AlignParams p) {
  const size_t at = size_t(blockIdx.x) * NIBBLE_ALIGN_THREADS + threadIdx.x;
  if (at < p.pairs) {
    to[at] = from[at];
  }
}
