#include "csrc/metal/encoder.h"

#include <cassert>
#include <sstream>
#include <stdexcept>

#include "csrc/metal/device_profile.h"
#include "csrc/metal/library.h"
#include "mlx/backend/metal/device.h"
#include "mlx/backend/metal/metal.h"

namespace nibble::metal {
namespace {

namespace mx = mlx::core;

MTL::Size to_mtl(const Dim3& d) {
  return MTL::Size(d.x, d.y, d.z);
}

void bind(mx::metal::CommandEncoder& encoder,
          Operand operand,
          const Operands& operands,
          int index) {
  auto input = [&](const mx::array* a) {
    assert(a != nullptr);
    encoder.set_input_array(*a, index);
  };
  switch (operand) {
    case Operand::kWeight:
      return input(operands.w);
    case Operand::kScales:
      return input(operands.scales);
    case Operand::kBiases:
      return input(operands.biases);
    case Operand::kUpWeight:
      return input(operands.up_w);
    case Operand::kUpScales:
      return input(operands.up_scales);
    case Operand::kUpBiases:
      return input(operands.up_biases);
    case Operand::kX:
      return input(operands.x);
    case Operand::kLhsIndices:
      return input(operands.lhs_indices);
    case Operand::kRhsIndices:
      return input(operands.rhs_indices);
    case Operand::kBias:
      return input(operands.bias);
    case Operand::kResidual:
      return input(operands.residual);
    case Operand::kOut:
      assert(operands.out != nullptr);
      return encoder.set_output_array(*operands.out, index);
  }
}

// A kernel that needs many registers is given fewer threads than the device
// has; dispatching more is undefined.
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

void encode(const LaunchPlan& plan,
            const Operands& operands,
            mx::metal::Device& device,
            mx::metal::CommandEncoder& encoder) {
  MTL::ComputePipelineState* compiled = pipeline(device, plan.kernel);
  require_threads(compiled, plan);
  encoder.set_compute_pipeline_state(compiled);
  int index = 0;
  for (Operand operand : plan.buffers) {
    bind(encoder, operand, operands, index++);
  }
  encoder.set_bytes(
      plan.params.data(), static_cast<int>(plan.params.size()), index);
  if (plan.threadgroup_bytes > 0) {
    encoder.set_threadgroup_memory_length(plan.threadgroup_bytes, 0);
  }
  encoder.dispatch_threadgroups(to_mtl(plan.threadgroups),
                                to_mtl(plan.threads));
}

}  // namespace

bool is_available() {
  return mx::metal::is_available();
}

DeviceProfile device_profile(mx::Device device) {
  return parse_architecture(mx::metal::device(device).get_architecture());
}

void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream) {
  mx::metal::Device& device = mx::metal::device(stream.device);
  mx::metal::CommandEncoder& encoder = mx::metal::get_command_encoder(stream);
  for (const LaunchPlan& plan : launches) {
    encode(plan, operands, device, encoder);
  }
}

}  // namespace nibble::metal
