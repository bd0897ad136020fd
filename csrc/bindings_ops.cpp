#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include "csrc/bindings.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/ops.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

using Array = mx::array;
using MaybeArray = std::optional<mx::array>;
using MaybeInt = std::optional<int>;

Array quantized_matmul(const Array& x,
                       const Array& w,
                       const Array& scales,
                       const MaybeArray& biases,
                       bool transpose,
                       MaybeInt group_size,
                       MaybeInt bits,
                       const std::string& mode,
                       const MaybeArray& bias,
                       const MaybeArray& residual,
                       int activation_bits,
                       bool batch_invariant,
                       bool symmetric,
                       bool half_tiles,
                       int tuning,
                       mx::StreamOrDevice s) {
  return ops::quantized_matmul(x,
                               {w, scales, biases},
                               transpose,
                               {group_size, bits, mode},
                               {activations_of(activation_bits),
                                batch_invariant,
                                symmetric,
                                half_tiles,
                                tuning},
                               {bias, residual},
                               s);
}

Array gather_qmm(const Array& x,
                 const Array& w,
                 const Array& scales,
                 const MaybeArray& biases,
                 const MaybeArray& lhs_indices,
                 const MaybeArray& rhs_indices,
                 bool transpose,
                 MaybeInt group_size,
                 MaybeInt bits,
                 const std::string& mode,
                 const MaybeArray& global_scale,
                 bool sorted_indices,
                 int activation_bits,
                 bool batch_invariant,
                 bool symmetric,
                 int tuning,
                 mx::StreamOrDevice s) {
  return ops::gather_qmm(x,
                         {w, scales, biases, global_scale},
                         {lhs_indices, rhs_indices, sorted_indices},
                         transpose,
                         {group_size, bits, mode},
                         {.activations = activations_of(activation_bits),
                          .batch_invariant = batch_invariant,
                          .symmetric = symmetric,
                          .tuning = tuning},
                         s);
}

Array swiglu_matmul(const Array& x,
                    const Triple& gate,
                    const Triple& up,
                    MaybeInt group_size,
                    MaybeInt bits,
                    const std::string& mode,
                    int activation_bits,
                    bool batch_invariant,
                    bool symmetric,
                    mx::StreamOrDevice s) {
  return ops::swiglu(
      x,
      as_arrays(gate),
      as_arrays(up),
      {},
      {group_size, bits, mode},
      {activations_of(activation_bits), batch_invariant, symmetric},
      s);
}

Array gather_swiglu(const Array& x,
                    const Triple& gate,
                    const Triple& up,
                    const MaybeArray& lhs_indices,
                    const MaybeArray& rhs_indices,
                    MaybeInt group_size,
                    MaybeInt bits,
                    const std::string& mode,
                    bool sorted_indices,
                    int activation_bits,
                    bool batch_invariant,
                    bool symmetric,
                    mx::StreamOrDevice s) {
  return ops::swiglu(
      x,
      as_arrays(gate),
      as_arrays(up),
      {lhs_indices, rhs_indices, sorted_indices},
      {group_size, bits, mode},
      {activations_of(activation_bits), batch_invariant, symmetric},
      s);
}

Array dequantize(const Array& w,
                 const Array& scales,
                 const MaybeArray& biases,
                 MaybeInt group_size,
                 MaybeInt bits,
                 const std::string& mode,
                 const MaybeArray& global_scale,
                 std::optional<mx::Dtype> dtype,
                 int tuning,
                 mx::StreamOrDevice s) {
  return ops::dequantize({w, scales, biases, global_scale},
                         {group_size, bits, mode},
                         dtype,
                         s,
                         {.tuning = tuning});
}

}  // namespace

void bind_ops(nb::module_& m) {
  define<2>(m,
            "quantized_matmul",
            &quantized_matmul,
            "scales"_a,
            "biases"_a = nb::none(),
            "transpose"_a = true,
            "group_size"_a = nb::none(),
            "bits"_a = nb::none(),
            "mode"_a = ops::kDefaultMode,
            nb::kw_only(),
            "bias"_a = nb::none(),
            "residual"_a = nb::none(),
            "activation_bits"_a = 0,
            "batch_invariant"_a = false,
            "symmetric"_a = false,
            "half_tiles"_a = false,
            "tuning"_a = 0,
            "stream"_a = nb::none(),
            "See mlx_nibble.ops.quantized_matmul.");

  define<2>(m,
            "gather_qmm",
            &gather_qmm,
            "scales"_a,
            "biases"_a = nb::none(),
            "lhs_indices"_a = nb::none(),
            "rhs_indices"_a = nb::none(),
            "transpose"_a = true,
            "group_size"_a = nb::none(),
            "bits"_a = nb::none(),
            "mode"_a = ops::kDefaultMode,
            "global_scale"_a = nb::none(),
            nb::kw_only(),
            "sorted_indices"_a = false,
            "activation_bits"_a = 0,
            "batch_invariant"_a = false,
            "symmetric"_a = false,
            "tuning"_a = 0,
            "stream"_a = nb::none(),
            "See mlx_nibble.ops.gather_qmm.");

  define<1>(m,
            "swiglu_matmul",
            &swiglu_matmul,
            "gate"_a,
            "up"_a,
            "group_size"_a = nb::none(),
            "bits"_a = nb::none(),
            "mode"_a = ops::kDefaultMode,
            nb::kw_only(),
            "activation_bits"_a = 0,
            "batch_invariant"_a = false,
            "symmetric"_a = false,
            "stream"_a = nb::none(),
            "See mlx_nibble.ops.swiglu.");

  define<1>(m,
            "gather_swiglu",
            &gather_swiglu,
            "gate"_a,
            "up"_a,
            "lhs_indices"_a = nb::none(),
            "rhs_indices"_a = nb::none(),
            "group_size"_a = nb::none(),
            "bits"_a = nb::none(),
            "mode"_a = ops::kDefaultMode,
            nb::kw_only(),
            "sorted_indices"_a = false,
            "activation_bits"_a = 0,
            "batch_invariant"_a = false,
            "symmetric"_a = false,
            "stream"_a = nb::none(),
            "See mlx_nibble.ops.gather_swiglu.");

  define<1>(m,
            "dequantize",
            &dequantize,
            "scales"_a,
            "biases"_a = nb::none(),
            "group_size"_a = nb::none(),
            "bits"_a = nb::none(),
            "mode"_a = ops::kDefaultMode,
            "global_scale"_a = nb::none(),
            "dtype"_a = nb::none(),
            nb::kw_only(),
            "tuning"_a = 0,
            "stream"_a = nb::none(),
            "See mlx_nibble.ops.dequantize.");

  define<1>(m,
            "rms_norm",
            &fast::rms_norm,
            "weight"_a.none(),
            "eps"_a,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.rms_norm.");

  define<1>(m,
            "logsumexp",
            &fast::logsumexp,
            "axes"_a.none(),
            "keepdims"_a,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.logsumexp.");

  define<1>(m,
            "argmax",
            &fast::argmax,
            "axis"_a.none(),
            "keepdims"_a,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.argmax.");

  define<1>(m,
            "rope",
            &fast::rope,
            "dims"_a,
            nb::kw_only(),
            "traditional"_a,
            "base"_a.none(),
            "scale"_a,
            "offset"_a,
            "freqs"_a = nb::none(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.rope.");

  define<3>(m,
            "scaled_dot_product_attention",
            &fast::scaled_dot_product_attention,
            nb::kw_only(),
            "scale"_a,
            "mask"_a = nb::none(),
            "sinks"_a = nb::none(),
            "force_fused"_a = false,
            "batch_invariant"_a = false,
            "cap"_a = 0,
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.scaled_dot_product_attention.");

  define<3>(m,
            "quantized_scaled_dot_product_attention",
            &fast::quantized_scaled_dot_product_attention,
            nb::kw_only(),
            "scale"_a,
            "mask"_a = nb::none(),
            "sinks"_a = nb::none(),
            "group_size"_a,
            "bits"_a,
            "batch_invariant"_a = false,
            "cap"_a = 0,
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.quantized_scaled_dot_product_attention.");

  define<2>(m,
            "swiglu",
            &fast::swiglu,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.swiglu.");

  define<2>(
      m,
      "gated_products",
      &fusion::gated_products,
      nb::kw_only(),
      "stream"_a = nb::none(),
      "Compute silu(gate) * up and the two products that gate and up are "
      "waiting for in one node. Returns None if no kernel supports that.");
}

}  // namespace nibble
