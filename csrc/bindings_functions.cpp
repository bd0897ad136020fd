#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/variant.h>

#include <stdexcept>
#include <string>
#include <string_view>

#include "csrc/bindings.h"
#include "csrc/mlx/fast.h"

namespace nb = nanobind;
namespace mx = mlx::core;
using namespace nb::literals;

namespace nibble {
namespace {

using MaybeArray = std::optional<mx::array>;

constexpr std::pair<std::string_view, cpu::Activation> kActivations[] = {
    {"silu", cpu::Activation::kSilu},
    {"gelu", cpu::Activation::kGelu},
    {"gelu_approx", cpu::Activation::kGeluTanh},
    {"gelu_fast_approx", cpu::Activation::kGeluSigmoid},
    {"relu2", cpu::Activation::kReluSquared},
    {"tanh", cpu::Activation::kTanh},
    {"sigmoid", cpu::Activation::kSigmoid},
    {"swiglu_oai", cpu::Activation::kClipped},
};

MaybeArray activation(const std::string& kind,
                      const mx::array& x,
                      const MaybeArray& up,
                      float alpha,
                      float limit,
                      mx::StreamOrDevice s) {
  for (auto [name, value] : kActivations) {
    if (name == kind) {
      return fast::activation({value, alpha, limit}, x, up, s);
    }
  }
  throw std::invalid_argument(
      "[activation] a known activation is required but got '" + kind + "'.");
}

}  // namespace

void bind_functions(nb::module_& m) {
  m.def("layer_norm",
        &fast::layer_norm,
        nb::arg(),
        "weight"_a.none(),
        "bias"_a.none(),
        "eps"_a,
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.layer_norm.");

  m.def(
      "activation",
      &activation,
      nb::arg(),
      nb::arg(),
      "up"_a = nb::none(),
      "alpha"_a = 0,
      "limit"_a = 0,
      "stream"_a = nb::none(),
      "Return an activation of x, times up; None if no kernel computes that.");

  m.def("conv1d",
        &fast::conv1d,
        nb::arg(),
        nb::arg(),
        "stride"_a = 1,
        "padding"_a = 0,
        "dilation"_a = 1,
        "groups"_a = 1,
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.conv1d.");

  m.def("dense_linear",
        &fast::linear,
        nb::arg(),
        nb::arg(),
        "bias"_a = nb::none(),
        nb::kw_only(),
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.linear.");

  m.def("gather_mm",
        &fast::gather_mm,
        nb::arg(),
        nb::arg(),
        "lhs_indices"_a = nb::none(),
        "rhs_indices"_a = nb::none(),
        nb::kw_only(),
        "sorted_indices"_a = false,
        "stream"_a = nb::none(),
        "See mlx_nibble.fast.gather_mm.");

  m.def("gated_delta",
        &fast::gated_delta,
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        "state"_a.none(),
        "mask"_a.none(),
        "stream"_a = nb::none(),
        "Return y and the new state; None if no kernel computes that.");

  m.def("state_space",
        &fast::state_space,
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        "limits"_a,
        "state"_a.none(),
        "mask"_a.none(),
        "stream"_a = nb::none(),
        "Return y and the new state; None if no kernel computes that.");

  m.def("rwkv7",
        &fast::rwkv7,
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        "state"_a.none(),
        "stream"_a = nb::none(),
        "Return y and the new state; None if no kernel computes that.");

  m.def("selective_scan",
        &fast::selective_scan,
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        nb::arg(),
        "state"_a.none(),
        "stream"_a = nb::none(),
        "Return y and the new state; None if no kernel computes that.");
}

}  // namespace nibble
