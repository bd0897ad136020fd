#include "csrc/mlx/nodes/evaluation.h"

#include "csrc/core/error.h"
#include "csrc/metal/encoder.h"
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
  out.set_data(mx::allocator::malloc(out.nbytes()));
  metal::Operands bound;
  for (size_t i = 0; i < operands.size(); ++i) {
    bound[operands[i]] = &inputs[i];
  }
  bound[Operand::kOut] = &out;
  metal::encode(*launches, bound, stream);
}

}  // namespace nibble::evaluation
