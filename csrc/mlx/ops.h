// The operations of quantized matrices. Signatures and behaviour are MLX's;
// docs/reference/differences.md lists the exceptions and the reasons.
//
// ops/ defines them. The declarations stand below all folders: nodes and fusion
// call them too, nodes for gradients.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "csrc/mlx/options.h"
#include "mlx/array.h"
#include "mlx/utils.h"

namespace nibble {

class SwigluMatmul;

}  // namespace nibble

namespace nibble::ops {

// mlx::core::quantized_matmul. MLX computes formats that we do not support.
mx::array quantized_matmul(const mx::array& x,
                           const QuantizedArrays& matrix,
                           bool transpose,
                           const QuantArgs& args,
                           const MatmulOptions& options,
                           const Addends& addends,
                           mx::StreamOrDevice s);

// mlx::core::gather_qmm.
mx::array gather_qmm(const mx::array& x,
                     const QuantizedArrays& matrix,
                     const GatherIndices& indices,
                     bool transpose,
                     const QuantArgs& args,
                     const MatmulOptions& options,
                     mx::StreamOrDevice s);

// silu(x @ gate_hat^T) * (x @ up_hat^T), of products that gather_qmm computes
// if there are indices: one node where a kernel supports it, else two products.
mx::array swiglu(const mx::array& x,
                 const QuantizedArrays& gate,
                 const QuantizedArrays& up,
                 const GatherIndices& indices,
                 const QuantArgs& args,
                 const MatmulOptions& options,
                 mx::StreamOrDevice s);

// swiglu as a node with these inputs; nullopt if no kernel computes it.
std::optional<mx::array> swiglu_node(std::shared_ptr<SwigluMatmul> node,
                                     std::vector<mx::array> inputs,
                                     mx::Dtype dtype);

// swiglu as one node; nullopt where no kernel supports it.
std::optional<mx::array> swiglu_node(const mx::array& x,
                                     const QuantizedArrays& gate,
                                     const QuantizedArrays& up,
                                     const GatherIndices& indices,
                                     const QuantArgs& args,
                                     const MatmulOptions& options,
                                     mx::StreamOrDevice s);

// mlx::core::dequantize.
mx::array dequantize(const QuantizedArrays& matrix,
                     const QuantArgs& args,
                     std::optional<mx::Dtype> dtype,
                     mx::StreamOrDevice s,
                     const MatmulOptions& options = {});

}  // namespace nibble::ops
