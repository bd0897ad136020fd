#include "csrc/metal/encoder.h"

#include <cassert>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "csrc/core/planner.h"
#include "csrc/metal/device_profile.h"
#include "csrc/metal/library.h"
#include "mlx/allocator.h"
#include "mlx/backend/metal/device.h"
#include "mlx/backend/metal/metal.h"

namespace nibble::metal {
namespace {

namespace mx = mlx::core;

MTL::Size to_mtl(const Dim3& d) {
  return MTL::Size(d.x, d.y, d.z);
}

// The array that a plan's operand stands for; null for those that are written.
const mx::array* input_of(Operand operand, const Operands& operands) {
  switch (operand) {
    case Operand::kWeight:
      return operands.w;
    case Operand::kScales:
      return operands.scales;
    case Operand::kBiases:
      return operands.biases;
    case Operand::kUpWeight:
      return operands.up_w;
    case Operand::kUpScales:
      return operands.up_scales;
    case Operand::kUpBiases:
      return operands.up_biases;
    case Operand::kX:
      return operands.x;
    case Operand::kLhsIndices:
      return operands.lhs_indices;
    case Operand::kRhsIndices:
      return operands.rhs_indices;
    case Operand::kBias:
      return operands.bias;
    case Operand::kResidual:
      return operands.residual;
    case Operand::kSums:
      return operands.sums;
    case Operand::kWeight1:
      return operands.joined[0].w;
    case Operand::kScales1:
      return operands.joined[0].scales;
    case Operand::kBiases1:
      return operands.joined[0].biases;
    case Operand::kBias1:
      return operands.joined[0].bias;
    case Operand::kWeight2:
      return operands.joined[1].w;
    case Operand::kScales2:
      return operands.joined[1].scales;
    case Operand::kBiases2:
      return operands.joined[1].biases;
    case Operand::kBias2:
      return operands.joined[1].bias;
    case Operand::kOut:
    case Operand::kOut1:
    case Operand::kOut2:
      return nullptr;
  }
  return nullptr;
}

mx::array* output_of(Operand operand, const Operands& operands) {
  switch (operand) {
    case Operand::kOut1:
      return operands.joined[0].out;
    case Operand::kOut2:
      return operands.joined[1].out;
    case Operand::kSums:
      return operands.sums;
    default:
      return operands.out;
  }
}

// Sums of which a launch writes `bytes`: the encoder keeps them until the GPU
// is done, and lets no launch that reads them begin before.
mx::array temporary_sums(uint64_t bytes, mx::metal::CommandEncoder& encoder) {
  mx::Shape shape{static_cast<int>(bytes / sizeof(float))};
  mx::array sums(std::move(shape), mx::float32, nullptr, {});
  sums.set_data(mx::allocator::malloc(bytes));
  encoder.add_temporary(sums);
  return sums;
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

// Binds what follows the buffers, and runs.
void dispatch(const LaunchPlan& plan,
              int index,
              mx::metal::CommandEncoder& encoder) {
  encoder.set_bytes(
      plan.params.data(), static_cast<int>(plan.params.size()), index);
  if (plan.threadgroup_bytes > 0) {
    encoder.set_threadgroup_memory_length(plan.threadgroup_bytes, 0);
  }
  encoder.dispatch_threadgroups(to_mtl(plan.threadgroups),
                                to_mtl(plan.threads));
}

// `a`, or a copy of it if it begins off the boundary that kernels rely on: a
// view into another array may begin at any element of it.
mx::array aligned(const mx::array& a,
                  mx::metal::Device& device,
                  mx::metal::CommandEncoder& encoder) {
  std::optional<LaunchPlan> plan = plan_align(a.offset(), a.nbytes());
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
  std::vector<mx::array> inputs;
  for (Operand operand : plan.buffers) {
    if (!plan.writes(operand)) {
      const mx::array* input = input_of(operand, operands);
      assert(input != nullptr);
      inputs.push_back(aligned(*input, device, encoder));
    }
  }
  encoder.set_compute_pipeline_state(compiled);
  auto input = inputs.begin();
  int index = 0;
  for (Operand operand : plan.buffers) {
    if (plan.writes(operand)) {
      mx::array* output = output_of(operand, operands);
      assert(output != nullptr);
      encoder.set_output_array(*output, index++);
    } else {
      encoder.set_input_array(*input++, index++);
    }
  }
  dispatch(plan, index, encoder);
  // MLX keeps the inputs of the node that it evaluates, not those of others.
  for (const Operands::Joined& joined : operands.joined) {
    for (const mx::array* a :
         {joined.w, joined.scales, joined.biases, joined.bias}) {
      if (a != nullptr) {
        encoder.add_temporary(*a);
      }
    }
  }
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
  Operands bound = operands;
  std::optional<mx::array> sums;
  for (const LaunchPlan& plan : launches) {
    if (plan.sums_bytes > 0) {
      sums = temporary_sums(plan.sums_bytes, encoder);
      bound.sums = &*sums;
    }
    encode(plan, bound, device, encoder);
  }
}

}  // namespace nibble::metal
