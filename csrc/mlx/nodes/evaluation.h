// The evaluation of quantized products on a GPU.
#pragma once

#include <vector>

#include "csrc/core/operand.h"
#include "csrc/mlx/plans.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::evaluation {

namespace mx = mlx::core;

// True if `out` has no elements, and then gives it its memory. A graph that is
// traced without shapes may be run with no rows. Nothing is launched then.
bool is_empty(mx::array& out);

// Gives `out` memory and runs the launches; operands[i] is the operand of
// inputs[i]. Throws without launches: the graph was built for another device.
void run_on_gpu(const char* op,
                const plans::Plan& launches,
                const std::vector<Operand>& operands,
                const std::vector<mx::array>& inputs,
                mx::array& out,
                mx::Stream stream);

}  // namespace nibble::evaluation
