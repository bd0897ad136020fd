#include "csrc/cuda/encoder.h"

#include <cstddef>
#include <optional>

#include "csrc/core/kernel_source.h"
#include "csrc/core/planner.h"
#include "csrc/core/tiles.h"
#include "csrc/cuda/library.h"
#include "csrc/cuda/memory.h"
#include "csrc/cuda/symbols.h"
#include "mlx/device.h"

namespace nibble::cuda {
namespace {

namespace mx = mlx::core;

Dim3Value to_cuda(const Dim3& d) {
  return {d.x, d.y, d.z};
}

void launch(const LaunchPlan& plan,
            const std::vector<mx::array>& arrays,
            Encoder encoder) {
  const Mlx& mlx = symbols()->mlx;
  std::vector<std::byte*> pointers;
  std::vector<void*> params;
  pointers.reserve(arrays.size());
  for (size_t i = 0; i < arrays.size(); ++i) {
    pointers.push_back(address(arrays[i]));
    params.push_back(&pointers.back());
    plan.writes(plan.buffers[i]) ? mlx.set_output_array(encoder, arrays[i])
                                 : mlx.set_input_array(encoder, arrays[i]);
  }
  params.push_back(const_cast<std::byte*>(plan.params.data()));
  mlx.add_kernel_node_raw(encoder,
                          function(plan.kernel, plan.threadgroup_bytes),
                          to_cuda(plan.threadgroups),
                          to_cuda(plan.threads),
                          {},
                          plan.threadgroup_bytes,
                          params.data());
}

// `a`, or an aligned copy. A view into another array may begin at any element,
// but kernels need the alignment of plan_align().
mx::array aligned(const mx::array& a, mx::Stream stream, Encoder encoder) {
  auto begin = reinterpret_cast<uintptr_t>(address(a));
  std::optional<LaunchPlan> plan =
      plan_align(static_cast<int64_t>(begin % kOperandAlignment), a.nbytes());
  if (!plan) {
    return a;
  }
  plan->kernel = kCudaAlignKernel;
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  allocate(copy, stream);
  launch(*plan, {a, copy}, encoder);
  // The copy must not be freed before the GPU is done.
  symbols()->mlx.add_completed_handler(encoder, [copy] {});
  return copy;
}

}  // namespace

bool is_available() {
  static const bool available =
      mx::is_available(mx::Device::gpu) && symbols() != nullptr;
  return available;
}

DeviceProfile device_profile() {
  DeviceProfile profile;
  profile.api = Api::kCuda;
  return profile;
}

void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream) {
  Encoder encoder = symbols()->mlx.get_command_encoder(stream);
  for (const LaunchPlan& plan : launches) {
    std::vector<mx::array> arrays;
    for (Operand operand : plan.buffers) {
      const mx::array& a = *operands[operand];
      arrays.push_back(plan.writes(operand) ? a : aligned(a, stream, encoder));
    }
    launch(plan, arrays, encoder);
  }
}

}  // namespace nibble::cuda
