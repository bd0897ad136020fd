// A contiguous copy of an operand at an aligned address. The other kernels load
// up to NIBBLE_ALIGNMENT neighbouring bytes at once. A view into an array may
// have any strides and begin at any element.
#pragma once

#include <metal_stdlib>

#include "kernels/shared.h"

namespace nibble {

using namespace metal;

// T has the size of the smallest element: strides are multiples of it. Each
// thread copies one T. A view without strides has one dimension, and then no
// index is divided.
template <typename T>
[[kernel]] void contiguous(const device T* from [[buffer(0)]],
                           device T* to [[buffer(1)]],
                           constant ContiguousParams& params [[buffer(2)]],
                           uint3 tgid [[threadgroup_position_in_grid]],
                           uint sgid [[simdgroup_index_in_threadgroup]],
                           uint lane [[thread_index_in_simdgroup]]) {
  const ulong at = ulong(tgid.x) * NIBBLE_CONTIGUOUS_THREADS +
                   sgid * NIBBLE_SIMD_WIDTH + lane;
  if (at >= params.units) {
    return;
  }
  ulong rest = at;
  long source = 0;
  for (int d = params.dims - 1; d > 0; --d) {
    const ulong size = ulong(params.shape[d]);
    source += long(rest % size) * params.strides[d];
    rest /= size;
  }
  to[at] = from[source + long(rest) * params.strides[0]];
}

}  // namespace nibble
