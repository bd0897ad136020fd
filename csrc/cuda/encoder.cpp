#include "csrc/cuda/encoder.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

// CUtensorMap.
struct alignas(64) TensorMap {
  std::byte bytes[128];
};

TensorMap map_of(const Boxes& b, std::byte* matrix) {
  // Values of CUtensorMapDataType (uint16, uint32), -Swizzle (128 bytes) and
  // -L2promotion (128 bytes).
  constexpr int kTwoBytes = 1, kFourBytes = 2, kSwizzle = 3, kPromotion = 2;
  uint64_t sizes[] = {uint64_t(b.columns), uint64_t(b.rows)};
  uint64_t strides[] = {uint64_t(b.columns) * b.item};
  uint32_t box[] = {uint32_t(b.box_columns), uint32_t(b.box_rows)};
  uint32_t steps[] = {1, 1};
  TensorMap map;
  require_success(symbols()->driver.cuTensorMapEncodeTiled(
                      &map,
                      b.item == 2 ? kTwoBytes : kFourBytes,
                      2,
                      matrix,
                      sizes,
                      strides,
                      box,
                      steps,
                      0,
                      b.swizzled ? kSwizzle : 0,
                      kPromotion,
                      0),
                  "cuTensorMapEncodeTiled");
  return map;
}

void launch(const LaunchPlan& plan,
            const std::vector<const mx::array*>& arrays,
            Encoder encoder) {
  const Mlx& mlx = symbols()->mlx;
  std::vector<std::byte*> pointers;
  std::vector<void*> params;
  pointers.reserve(arrays.size());
  params.reserve(arrays.size() + 1 + plan.boxes.size());
  for (size_t i = 0; i < arrays.size(); ++i) {
    const mx::array& a = *arrays[i];
    pointers.push_back(address(a));
    params.push_back(&pointers.back());
    plan.writes(plan.buffers[i]) ? mlx.set_output_array(encoder, a)
                                 : mlx.set_input_array(encoder, a);
  }
  params.push_back(const_cast<std::byte*>(plan.params.data()));
  std::vector<TensorMap> maps;
  maps.reserve(plan.boxes.size());
  for (const Boxes& boxes : plan.boxes) {
    auto at = std::ranges::find(plan.buffers, boxes.operand);
    maps.push_back(map_of(boxes, pointers[at - plan.buffers.begin()]));
    params.push_back(&maps.back());
  }
  mlx.add_kernel_node_raw(encoder,
                          function(plan.kernel, plan.threadgroup_bytes),
                          to_cuda(plan.threadgroups),
                          to_cuda(plan.threads),
                          {},
                          plan.threadgroup_bytes,
                          params.data());
}

// True if kernels read this operand an element at a time, from any address.
bool is_read_by_elements(Operand operand) {
  return operand == Operand::kLhsIndices || operand == Operand::kRhsIndices;
}

// A copy of `a` that kernels can read; nullopt if they can read `a`. A view
// into another array may have gaps and begin at any element. MLX gives small
// arrays any address.
std::optional<mx::array> readable_copy(const mx::array& a,
                                       Operand operand,
                                       mx::Stream stream,
                                       Encoder encoder) {
  auto begin = reinterpret_cast<uintptr_t>(address(a)) % NIBBLE_ALIGNMENT;
  if (a.flags().row_contiguous &&
      (begin == 0 || is_read_by_elements(operand))) {
    return std::nullopt;
  }
  std::optional<LaunchPlan> plan =
      plan_contiguous({{a.shape().begin(), a.shape().end()},
                       {a.strides().begin(), a.strides().end()},
                       static_cast<int64_t>(begin),
                       a.itemsize()},
                      Api::kCuda);
  if (!plan) {
    return std::nullopt;
  }
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  allocate(copy, stream);
  launch(*plan, {&a, &copy}, encoder);
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
  profile.wgmma =
      symbols()->driver.cuTensorMapEncodeTiled != nullptr && has_wgmma();
  return profile;
}

void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream) {
  Encoder encoder = symbols()->mlx.get_command_encoder(stream);
  for (const LaunchPlan& plan : launches) {
    std::vector<mx::array> copies;
    std::vector<const mx::array*> arrays;
    copies.reserve(plan.buffers.size());
    arrays.reserve(plan.buffers.size());
    for (Operand operand : plan.buffers) {
      const mx::array* a = operands[operand];
      if (!plan.writes(operand)) {
        if (auto copy = readable_copy(*a, operand, stream, encoder)) {
          copies.push_back(*std::move(copy));
          a = &copies.back();
        }
      }
      arrays.push_back(a);
    }
    launch(plan, arrays, encoder);
  }
}

}  // namespace nibble::cuda
