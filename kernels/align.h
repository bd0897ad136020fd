// A copy of an operand to an aligned address. The other kernels load up to
// NIBBLE_ALIGNMENT bytes at once, and a view into an array may begin at any
// element.
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// T has the size of the smallest element: a view begins at a multiple of it.
template <typename T>
[[kernel]] void align(const device T* from [[buffer(0)]],
                      device T* to [[buffer(1)]],
                      constant AlignParams& params [[buffer(2)]],
                      uint3 tgid [[threadgroup_position_in_grid]],
                      uint sgid [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
  const ulong at =
      ulong(tgid.x) * NIBBLE_ALIGN_THREADS + sgid * NIBBLE_SIMD_WIDTH + lane;
  if (at < params.pairs) {
    to[at] = from[at];
  }
}

}  // namespace nibble
