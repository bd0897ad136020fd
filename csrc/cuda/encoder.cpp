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

// `a`, or a copy that kernels can read: a view into another array may have gaps
// and begin at any element. MLX gives small arrays any address.
mx::array readable(const mx::array& a, mx::Stream stream, Encoder encoder) {
  auto begin = reinterpret_cast<uintptr_t>(address(a)) % NIBBLE_ALIGNMENT;
  if (a.flags().row_contiguous && begin == 0) {
    return a;
  }
  std::optional<LaunchPlan> plan =
      plan_contiguous({{a.shape().begin(), a.shape().end()},
                       {a.strides().begin(), a.strides().end()},
                       static_cast<int64_t>(begin),
                       a.itemsize()},
                      Api::kCuda);
  if (!plan) {
    return a;
  }
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
      arrays.push_back(plan.writes(operand) ? a : readable(a, stream, encoder));
    }
    launch(plan, arrays, encoder);
  }
}

}  // namespace nibble::cuda
