// What a caller may ask of an operation.
#pragma once

#include <optional>

#include "mlx/array.h"

namespace nibble::ops {

namespace mx = mlx::core;

// A quantized matrix [..., N, K] as mlx::core::quantize returns it.
struct QuantizedArrays {
  mx::array w, scales;
  std::optional<mx::array> biases;
};

// What a caller may ask of a product beyond MLX's own arguments.
struct MatmulOptions {
  // Round activations to 8 bits, where the device multiplies integers faster.
  bool int8_activations = false;
  // The bits of a row of the result do not depend on the other rows.
  bool batch_invariant = false;
  // The caller knows all biases to be -2^(bits - 1) * scales; they are then not
  // read. Nor are those of matrices that symmetric.h knows of.
  bool symmetric = false;
  // A GPU's tiles may hold bfloat numbers in half where these fit into it.
  bool half_tiles = false;
  // Of the table that says which candidate is the fastest; 0: none.
  int tuning = 0;

  bool operator==(const MatmulOptions&) const = default;
};

// What is added to a product before it is rounded, taken in the type of x.
struct Addends {
  std::optional<mx::array> bias;      // [N]
  std::optional<mx::array> residual;  // of the result's shape

  bool any() const { return bias || residual; }
};

}  // namespace nibble::ops
