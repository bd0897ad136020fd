// The public operations: validate, infer the shape, build the graph node.
// Signatures and behaviour are MLX's; docs/differences.md lists where ours
// differ and why.
#pragma once

#include <optional>
#include <string>

#include "csrc/core/format.h"
#include "mlx/array.h"
#include "mlx/utils.h"

namespace nibble::ops {

namespace mx = mlx::core;

// Throws std::invalid_argument if the environment asks the CPU backend for what
// it cannot do. Once, before any work: a task on a stream could not report it.
void check_environment();

// What a caller may ask of a product beyond MLX's own arguments.
struct MatmulOptions {
  // Round activations to 8 bits, where the device multiplies integers faster.
  bool int8_activations = false;
  // The bits of a row of the result do not depend on the other rows.
  bool batch_invariant = false;

  bool operator==(const MatmulOptions&) const = default;
};

// mlx::core::quantized_matmul. What our kernels do not hold becomes MLX's op.
mx::array quantized_matmul(const mx::array& x,
                           const mx::array& w,
                           const mx::array& scales,
                           const std::optional<mx::array>& biases,
                           bool transpose,
                           std::optional<int> group_size,
                           std::optional<int> bits,
                           const std::string& mode,
                           const MatmulOptions& options,
                           mx::StreamOrDevice s);

// mlx::core::dequantize, of the affine mode.
mx::array dequantize(const mx::array& w,
                     const mx::array& scales,
                     const std::optional<mx::array>& biases,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     const std::optional<mx::array>& global_scale,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s);

}  // namespace nibble::ops
