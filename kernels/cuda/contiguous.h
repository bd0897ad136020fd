// A contiguous copy of a view, as kernels/contiguous.h.
#pragma once

#include "kernels/cuda/types.h"
#include "kernels/shared.h"

namespace nibble {

template <typename T>
NIBBLE_DEVICE void copy_view(const T* from,
                             T* to,
                             const ContiguousParams& params) {
  const size_t at =
      size_t(blockIdx.x) * NIBBLE_CONTIGUOUS_THREADS + threadIdx.x;
  if (at >= params.units) {
    return;
  }
  size_t rest = at;
  long long source = 0;
  for (int d = params.dims - 1; d > 0; --d) {
    const size_t size = size_t(params.shape[d]);
    source += static_cast<long long>(rest % size) * params.strides[d];
    rest /= size;
  }
  to[at] = from[source + static_cast<long long>(rest) * params.strides[0]];
}

}  // namespace nibble

extern "C" __global__ void __launch_bounds__(NIBBLE_CONTIGUOUS_THREADS)
    cuda_contiguous(const nibble::uint16* from,
                    nibble::uint16* to,
                    ContiguousParams params) {
  nibble::copy_view(from, to, params);
}

extern "C" __global__ void __launch_bounds__(NIBBLE_CONTIGUOUS_THREADS)
    cuda_contiguous_bytes(const nibble::uint8* from,
                          nibble::uint8* to,
                          ContiguousParams params) {
  nibble::copy_view(from, to, params);
}
