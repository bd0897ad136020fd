#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "csrc/bindings_bench.h"
#include "csrc/bindings_self_check.h"
#include "csrc/bindings_tuning.h"
#include "csrc/mlx/facts/machine.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/fusion/fusion.h"
#include "csrc/mlx/ops.h"
#include "csrc/mlx/facts/repack.h"
#include "csrc/mlx/facts/symmetric.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace {

using Array = mx::array;
using MaybeArray = std::optional<mx::array>;
using MaybeInt = std::optional<int>;
// (w, scales, biases), as mlx.core.quantize returns them.
using Triple = std::tuple<Array, Array, MaybeArray>;

nibble::ops::QuantizedArrays as_arrays(const Triple& q) {
  return {std::get<0>(q), std::get<1>(q), std::get<2>(q)};
}

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
                       bool int8_activations,
                       bool batch_invariant,
                       bool symmetric,
                       bool half_tiles,
                       int tuning,
                       mx::StreamOrDevice s) {
  return nibble::ops::quantized_matmul(
      x,
      w,
      scales,
      biases,
      transpose,
      group_size,
      bits,
      mode,
      {int8_activations, batch_invariant, symmetric, half_tiles, tuning},
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
                 bool int8_activations,
                 bool symmetric,
                 mx::StreamOrDevice s) {
  return nibble::ops::gather_qmm(x,
                                 w,
                                 scales,
                                 biases,
                                 lhs_indices,
                                 rhs_indices,
                                 transpose,
                                 group_size,
                                 bits,
                                 mode,
                                 global_scale,
                                 sorted_indices,
                                 {int8_activations, false, symmetric},
                                 s);
}

Array swiglu_matmul(const Array& x,
                    const Triple& gate,
                    const Triple& up,
                    MaybeInt group_size,
                    MaybeInt bits,
                    const std::string& mode,
                    bool int8_activations,
                    bool batch_invariant,
                    bool symmetric,
                    mx::StreamOrDevice s) {
  return nibble::ops::swiglu(x,
                             as_arrays(gate),
                             as_arrays(up),
                             group_size,
                             bits,
                             mode,
                             {int8_activations, batch_invariant, symmetric},
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
                    bool int8_activations,
                    bool symmetric,
                    mx::StreamOrDevice s) {
  return nibble::ops::gather_swiglu(x,
                                    as_arrays(gate),
                                    as_arrays(up),
                                    lhs_indices,
                                    rhs_indices,
                                    group_size,
                                    bits,
                                    mode,
                                    sorted_indices,
                                    {int8_activations, false, symmetric},
                                    s);
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "The compiled half of mlx_nibble.";
  // Registers mx.array, mx.Stream ... in the type table that both share.
  nb::module_::import_("mlx.core");

  m.attr("mlx_version") = NIBBLE_MLX_VERSION;
  nibble::machine::check_environment();

  m.def("quantized_matmul",
        &quantized_matmul,
        nb::arg(),
        nb::arg(),
        "scales"_a,
        "biases"_a = nb::none(),
        "transpose"_a = true,
        "group_size"_a = nb::none(),
        "bits"_a = nb::none(),
        "mode"_a = "affine",
        nb::kw_only(),
        "bias"_a = nb::none(),
        "residual"_a = nb::none(),
        "int8_activations"_a = false,
        "batch_invariant"_a = false,
        "symmetric"_a = false,
        "half_tiles"_a = false,
        "tuning"_a = 0,
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.quantized_matmul.");

  m.def("gather_qmm",
        &gather_qmm,
        nb::arg(),
        nb::arg(),
        "scales"_a,
        "biases"_a = nb::none(),
        "lhs_indices"_a = nb::none(),
        "rhs_indices"_a = nb::none(),
        "transpose"_a = true,
        "group_size"_a = nb::none(),
        "bits"_a = nb::none(),
        "mode"_a = "affine",
        "global_scale"_a = nb::none(),
        nb::kw_only(),
        "sorted_indices"_a = false,
        "int8_activations"_a = false,
        "symmetric"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.gather_qmm.");

  m.def("swiglu_matmul",
        &swiglu_matmul,
        nb::arg(),
        "gate"_a,
        "up"_a,
        "group_size"_a = nb::none(),
        "bits"_a = nb::none(),
        "mode"_a = "affine",
        nb::kw_only(),
        "int8_activations"_a = false,
        "batch_invariant"_a = false,
        "symmetric"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.swiglu.");

  m.def("gather_swiglu",
        &gather_swiglu,
        nb::arg(),
        "gate"_a,
        "up"_a,
        "lhs_indices"_a = nb::none(),
        "rhs_indices"_a = nb::none(),
        "group_size"_a = nb::none(),
        "bits"_a = nb::none(),
        "mode"_a = "affine",
        nb::kw_only(),
        "sorted_indices"_a = false,
        "int8_activations"_a = false,
        "symmetric"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.gather_swiglu.");

  m.def("dequantize",
        &nibble::ops::dequantize,
        nb::arg(),
        "scales"_a,
        "biases"_a = nb::none(),
        "group_size"_a = nb::none(),
        "bits"_a = nb::none(),
        "mode"_a = "affine",
        "global_scale"_a = nb::none(),
        "dtype"_a = nb::none(),
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.dequantize.");

  m.def("rms_norm",
        &nibble::fast::rms_norm,
        nb::arg(),
        "weight"_a.none(),
        "eps"_a,
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.rms_norm.");

  m.def("logsumexp",
        &nibble::fast::logsumexp,
        nb::arg(),
        "axes"_a.none(),
        "keepdims"_a,
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.logsumexp.");

  m.def("rope",
        &nibble::fast::rope,
        nb::arg(),
        "dims"_a,
        nb::kw_only(),
        "traditional"_a,
        "base"_a.none(),
        "scale"_a,
        "offset"_a,
        "freqs"_a = nb::none(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.rope.");

  m.def("scaled_dot_product_attention",
        &nibble::fast::scaled_dot_product_attention,
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::kw_only(),
        "scale"_a,
        "mask"_a = nb::none(),
        "sinks"_a = nb::none(),
        "force_fused"_a = false,
        "batch_invariant"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.scaled_dot_product_attention.");

  m.def("swiglu",
        &nibble::fast::swiglu,
        nb::arg(),
        nb::arg(),
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.swiglu.");

  m.def("gated_products",
        &nibble::fusion::gated_products,
        nb::arg(),
        nb::arg(),
        nb::kw_only(),
        "stream"_a = nb::none(),
        "silu(gate) * up with the products that both are yet to be computed "
        "from, in one node; None if there is none for them.");

  m.def("remember_symmetric",
        &nibble::symmetric::remember,
        "scales"_a,
        "biases"_a,
        "bits"_a,
        "See mlx_nibble.acceleration.symmetric. Keeps both until "
        "forget_symmetric().");
  m.def("forget_symmetric",
        &nibble::symmetric::forget,
        "token"_a,
        "Of what remember_symmetric() returned.");

  m.def("remember_repack",
        &nibble::repack::remember,
        "w"_a,
        "scales"_a,
        "biases"_a,
        "bits"_a,
        "group_size"_a,
        "See mlx_nibble.acceleration.repack. Keeps all until forget_repack(); "
        "0 of a format "
        "that is read as it lies.");
  m.def("forget_repack",
        &nibble::repack::forget,
        "token"_a,
        "Of what remember_repack() returned.");
  m.def("repack_bytes",
        &nibble::repack::bytes,
        "token"_a,
        "Bytes of the copy that remember_repack() asked for, and of it those "
        "that are there by now.");

  m.def(
      "supports",
      [](const std::string& mode, int bits, int group_size) {
        return mode == "affine" && nibble::supported({bits, group_size});
      },
      "mode"_a,
      "bits"_a,
      "group_size"_a,
      "Whether our kernels compute a format, on any device.");

  nibble::bind_self_check(m);
  nibble::bind_tuning(m);
  nibble::bind_bench(m);
}
