// The public operations: validate, infer the shape, build the graph node.
// Signatures and behaviour are MLX's; docs/reference/differences.md lists where
// ours differ and why.
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
                           const Addends& addends,
                           mx::StreamOrDevice s);

// mlx::core::gather_qmm; batch_invariant has no effect.
mx::array gather_qmm(const mx::array& x,
                     const mx::array& w,
                     const mx::array& scales,
                     const std::optional<mx::array>& biases,
                     const std::optional<mx::array>& lhs_indices,
                     const std::optional<mx::array>& rhs_indices,
                     bool transpose,
                     std::optional<int> group_size,
                     std::optional<int> bits,
                     const std::string& mode,
                     const std::optional<mx::array>& global_scale,
                     bool sorted_indices,
                     const MatmulOptions& options,
                     mx::StreamOrDevice s);

// A quantized matrix [..., N, K] as mlx::core::quantize returns it.
struct QuantizedArrays {
  mx::array w, scales;
  std::optional<mx::array> biases;
};

// silu(x @ gate_hat^T) * (x @ up_hat^T): one node where there is a kernel for
// it, else two products.
mx::array swiglu(const mx::array& x,
                 const QuantizedArrays& gate,
                 const QuantizedArrays& up,
                 std::optional<int> group_size,
                 std::optional<int> bits,
                 const std::string& mode,
                 const MatmulOptions& options,
                 mx::StreamOrDevice s);

// The same of the products that gather_qmm computes.
mx::array gather_swiglu(const mx::array& x,
                        const QuantizedArrays& gate,
                        const QuantizedArrays& up,
                        const std::optional<mx::array>& lhs_indices,
                        const std::optional<mx::array>& rhs_indices,
                        std::optional<int> group_size,
                        std::optional<int> bits,
                        const std::string& mode,
                        bool sorted_indices,
                        const MatmulOptions& options,
                        mx::StreamOrDevice s);

// What swiglu and gather_swiglu do, as one node; nullopt where they are two
// products and an activation.
std::optional<mx::array> swiglu_node(const mx::array& x,
                                     const QuantizedArrays& gate,
                                     const QuantizedArrays& up,
                                     std::optional<int> group_size,
                                     std::optional<int> bits,
                                     const std::string& mode,
                                     const MatmulOptions& options,
                                     mx::StreamOrDevice s);
std::optional<mx::array> gather_swiglu_node(
    const mx::array& x,
    const QuantizedArrays& gate,
    const QuantizedArrays& up,
    const std::optional<mx::array>& lhs_indices,
    const std::optional<mx::array>& rhs_indices,
    std::optional<int> group_size,
    std::optional<int> bits,
    const std::string& mode,
    bool sorted_indices,
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
