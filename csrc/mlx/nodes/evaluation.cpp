#include "csrc/mlx/nodes/evaluation.h"

#include "csrc/core/error.h"
#include "mlx/allocator.h"

namespace nibble::evaluation {

metal::Operands quantized_operands(const std::vector<mx::array>& inputs,
                                   int first) {
  metal::Operands operands;
  operands.w = &inputs[first];
  operands.scales = &inputs[first + 1];
  operands.biases = &inputs[first + 2];
  return operands;
}

void run_on_gpu(const char* op,
                const std::optional<std::vector<LaunchPlan>>& launches,
                metal::Operands operands,
                mx::array& out,
                mx::Stream stream) {
  require(launches.has_value(),
          op,
          "a graph built for this device must be run on it");
  out.set_data(mx::allocator::malloc(out.nbytes()));
  operands.out = &out;
  metal::encode(*launches, operands, stream);
}

}  // namespace nibble::evaluation
