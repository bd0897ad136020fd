#include "csrc/mlx/nodes/evaluation.h"

#include "csrc/core/error.h"
#include "csrc/mlx/executor.h"
#include "mlx/allocator.h"

namespace nibble::evaluation {

bool is_empty(mx::array& out) {
  if (out.size() > 0) {
    return false;
  }
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return true;
}

void run_on_gpu(const char* op,
                const plans::Plan& launches,
                const std::vector<Operand>& operands,
                const std::vector<mx::array>& inputs,
                mx::array& out,
                mx::Stream stream) {
  require(launches != nullptr,
          op,
          "a graph built for this device must be run on it");
  executor::allocate(out, stream);
  executor::Operands bound;
  for (size_t i = 0; i < operands.size(); ++i) {
    bound[operands[i]] = &inputs[i];
  }
  bound[Operand::kOut] = &out;
  executor::encode(*launches, bound, stream);
}

}  // namespace nibble::evaluation
