#include "csrc/metal/encoder.h"

#include <algorithm>
#include <cassert>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "csrc/core/planner.h"
#include "csrc/metal/device_profile.h"
#include "csrc/metal/library.h"
#include "mlx/allocator.h"
#include "mlx/backend/gpu/device_info.h"
#include "mlx/backend/metal/device.h"
#include "mlx/backend/metal/metal.h"

namespace nibble::metal {
namespace {

namespace mx = mlx::core;

MTL::Size to_mtl(const Dim3& d) {
  return MTL::Size(d.x, d.y, d.z);
}

// A buffer of `bytes` for the sums that a launch writes. The encoder keeps it
// until the GPU is done, and lets no launch read it before.
mx::array temporary_sums(uint64_t bytes, mx::metal::CommandEncoder& encoder) {
  mx::Shape shape{static_cast<int>(bytes / sizeof(float))};
  mx::array sums(std::move(shape), mx::float32, nullptr, {});
  sums.set_data(mx::allocator::malloc(bytes));
  encoder.add_temporary(sums);
  return sums;
}

// Throws if the plan has more threads than this pipeline allows. Metal allows
// fewer threads to a kernel of many registers; dispatching more is undefined.
void require_threads(MTL::ComputePipelineState* pipeline,
                     const LaunchPlan& plan) {
  uint64_t most = pipeline->maxTotalThreadsPerThreadgroup();
  if (plan.threads.volume() > most) {
    std::ostringstream message;
    message << "[encode] " << plan.kernel << " needs " << plan.threads.volume()
            << " threads in a threadgroup but this GPU runs it with at most "
            << most << '.';
    throw std::runtime_error(message.str());
  }
}

// Binds the parameters and dispatches.
void dispatch(const LaunchPlan& plan,
              int index,
              mx::metal::CommandEncoder& encoder) {
  encoder.set_bytes(
      plan.params.data(), static_cast<int>(plan.params.size()), index);
  encoder.dispatch_threadgroups(to_mtl(plan.threadgroups),
                                to_mtl(plan.threads));
}

// `a`, or a copy that kernels can read: a view into another array may have gaps
// and begin at any element.
mx::array readable(const mx::array& a,
                   mx::metal::Device& device,
                   mx::metal::CommandEncoder& encoder) {
  if (a.flags().row_contiguous && a.offset() % NIBBLE_ALIGNMENT == 0) {
    return a;
  }
  std::optional<LaunchPlan> plan =
      plan_contiguous({{a.shape().begin(), a.shape().end()},
                       {a.strides().begin(), a.strides().end()},
                       a.offset(),
                       a.itemsize()});
  if (!plan) {
    return a;
  }
  mx::array copy(a.shape(), a.dtype(), nullptr, {});
  copy.set_data(mx::allocator::malloc(copy.nbytes()));
  encoder.add_temporary(copy);
  encoder.set_compute_pipeline_state(pipeline(device, plan->kernel));
  encoder.set_input_array(a, 0);
  encoder.set_output_array(copy, 1);
  dispatch(*plan, 2, encoder);
  return copy;
}

void encode(const LaunchPlan& plan,
            const Operands& operands,
            mx::metal::Device& device,
            mx::metal::CommandEncoder& encoder) {
  MTL::ComputePipelineState* compiled = pipeline(device, plan.kernel);
  require_threads(compiled, plan);
  std::vector<mx::array> arrays;
  for (size_t i = 0; i < plan.buffers.size(); ++i) {
    Operand operand = plan.buffers[i];
    // Bound again where the kernel reads nothing: a view is copied once.
    auto first =
        std::ranges::find(plan.buffers, operand) - plan.buffers.begin();
    if (static_cast<size_t>(first) < i) {
      arrays.push_back(arrays[first]);
      continue;
    }
    const mx::array* a = operands[operand];
    assert(a != nullptr);
    arrays.push_back(plan.writes(operand) ? *a : readable(*a, device, encoder));
  }
  encoder.set_compute_pipeline_state(compiled);
  int index = 0;
  for (Operand operand : plan.buffers) {
    if (plan.writes(operand)) {
      encoder.set_output_array(arrays[index], index);
    } else {
      encoder.set_input_array(arrays[index], index);
    }
    ++index;
  }
  dispatch(plan, index, encoder);
}

}  // namespace

bool is_available() {
  // The first is true in every build for macOS. A virtual machine or a sandbox
  // may have no device, and MLX finds that out once.
  static const bool available =
      mx::metal::is_available() && mx::gpu::device_count() > 0;
  return available;
}

DeviceProfile device_profile(mx::Device device) {
  return with_facts(
      parse_architecture(mx::metal::device(device).get_architecture()));
}

void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream) {
  mx::metal::Device& device = mx::metal::device(stream.device);
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  Operands bound = operands;
  std::optional<mx::array> sums;
  for (const LaunchPlan& plan : launches) {
    if (plan.sums_bytes > 0) {
      sums = temporary_sums(plan.sums_bytes, encoder);
      bound[Operand::kSums] = &*sums;
    }
    encode(plan, bound, device, encoder);
  }
}

}  // namespace nibble::metal
