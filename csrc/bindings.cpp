#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include "csrc/bindings_self_check.h"
#include "csrc/mlx/fast.h"
#include "csrc/mlx/ops.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace {

mx::array quantized_matmul(const mx::array& x,
                           const mx::array& w,
                           const mx::array& scales,
                           const std::optional<mx::array>& biases,
                           bool transpose,
                           std::optional<int> group_size,
                           std::optional<int> bits,
                           const std::string& mode,
                           bool int8_activations,
                           bool batch_invariant,
                           mx::StreamOrDevice s) {
  return nibble::ops::quantized_matmul(x,
                                       w,
                                       scales,
                                       biases,
                                       transpose,
                                       group_size,
                                       bits,
                                       mode,
                                       {int8_activations, batch_invariant},
                                       s);
}

}  // namespace

NB_MODULE(_ext, m) {
  m.doc() = "The compiled half of mlx_nibble.";
  // Registers mx.array, mx.Stream ... in the type table that both share.
  nb::module_::import_("mlx.core");

  m.attr("mlx_version") = NIBBLE_MLX_VERSION;
  nibble::ops::check_environment();

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
        "int8_activations"_a = false,
        "batch_invariant"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.ops.quantized_matmul.");

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

  m.def(
      "holds",
      [](const std::string& mode, int bits, int group_size) {
        return mode == "affine" && nibble::held({bits, group_size});
      },
      "mode"_a,
      "bits"_a,
      "group_size"_a,
      "Whether our kernels compute a format, on any device.");

  nibble::bind_self_check(m);
}
