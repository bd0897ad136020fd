// The copy of an operand that kernels cannot read in place.
#include <cassert>

#include "csrc/core/kernel_source.h"
#include "csrc/core/plan/launch.h"
#include "csrc/core/planner.h"

namespace nibble {

std::optional<LaunchPlan> plan_contiguous(const Layout& from, Api api) {
  // Elements are one byte or whole pairs of bytes.
  bool bytes = from.itemsize == 1;
  int units = bytes ? 1 : static_cast<int>(from.itemsize / 2);
  ContiguousParams params{1, 0, {}, {}};
  auto add = [&](int size, int64_t stride) {
    params.units *= static_cast<uint64_t>(size);
    if (size == 1) {
      return;
    }
    // The dimension before goes on where this one ends.
    int last = params.dims - 1;
    if (last >= 0 && params.strides[last] == size * stride) {
      params.shape[last] *= size;
      params.strides[last] = stride;
      return;
    }
    assert(params.dims < NIBBLE_CONTIGUOUS_DIMS);
    params.shape[params.dims] = size;
    params.strides[params.dims] = stride;
    ++params.dims;
  };
  for (size_t d = 0; d < from.shape.size(); ++d) {
    add(from.shape[d], from.strides[d] * units);
  }
  add(units, 1);
  if (params.dims == 0) {  // one element
    params.dims = params.shape[0] = 1;
    params.strides[0] = 1;
  }
  bool contiguous = params.dims == 1 && params.strides[0] == 1;
  if (contiguous && from.offset % NIBBLE_ALIGNMENT == 0) {
    return std::nullopt;
  }
  Elementwise shape{NIBBLE_CONTIGUOUS_THREADS};
  LaunchPlan launch;
  if (api == Api::kCuda) {
    launch.kernel = bytes ? kCudaContiguousBytesKernel : kCudaContiguousKernel;
  } else {
    launch.kernel = bytes ? kContiguousBytesKernel : kContiguousKernel;
  }
  launch.threadgroups = shape.grid({static_cast<int64_t>(params.units)});
  launch.threads = shape.threads();
  bind(launch, {Operand::kX, Operand::kOut});
  launch.params = as_bytes(params);
  return launch;
}

}  // namespace nibble
