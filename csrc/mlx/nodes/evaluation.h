// What nodes of quantized products do alike when a GPU evaluates them.
#pragma once

#include <optional>
#include <vector>

#include "csrc/core/launch_plan.h"
#include "csrc/metal/encoder.h"
#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::evaluation {

namespace mx = mlx::core;

// The three arrays of a quantized matrix, inputs first, first + 1, first + 2.
metal::Operands quantized_operands(const std::vector<mx::array>& inputs,
                                   int first);

// Gives `out` memory and runs what `op` has planned for it. Throws if there is
// no plan: the graph was built for another device.
void run_on_gpu(const char* op,
                const std::optional<std::vector<LaunchPlan>>& launches,
                metal::Operands operands,
                mx::array& out,
                mx::Stream stream);

}  // namespace nibble::evaluation
