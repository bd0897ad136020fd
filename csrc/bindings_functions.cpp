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
  define<1>(m,
            "layer_norm",
            &fast::layer_norm,
            "weight"_a.none(),
            "bias"_a.none(),
            "eps"_a,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.layer_norm.");

  define<2>(
      m,
      "activation",
      &activation,
      "up"_a = nb::none(),
      "alpha"_a = 0,
      "limit"_a = 0,
      "stream"_a = nb::none(),
      "Return an activation of x, times up; None if no kernel computes that.");

  define<2>(m,
            "conv1d",
            &fast::conv1d,
            "stride"_a = 1,
            "padding"_a = 0,
            "dilation"_a = 1,
            "groups"_a = 1,
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.conv1d.");

  define<2>(m,
            "dense_linear",
            &fast::linear,
            "bias"_a = nb::none(),
            nb::kw_only(),
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.linear.");

  define<2>(m,
            "gather_mm",
            &fast::gather_mm,
            "lhs_indices"_a = nb::none(),
            "rhs_indices"_a = nb::none(),
            nb::kw_only(),
            "sorted_indices"_a = false,
            "stream"_a = nb::none(),
            "See mlx_nibble.fast.gather_mm.");

  define<5>(m,
            "gated_delta",
            &fast::gated_delta,
            "state"_a.none(),
            "mask"_a.none(),
            "stream"_a = nb::none(),
            "Return y and the new state; None if no kernel computes that.");

  define<7>(m,
            "state_space",
            &fast::state_space,
            "limits"_a,
            "state"_a.none(),
            "mask"_a.none(),
            "stream"_a = nb::none(),
            "Return y and the new state; None if no kernel computes that.");

  define<6>(m,
            "rwkv7",
            &fast::rwkv7,
            "state"_a.none(),
            "stream"_a = nb::none(),
            "Return y and the new state; None if no kernel computes that.");

  define<6>(m,
            "selective_scan",
            &fast::selective_scan,
            "state"_a.none(),
            "stream"_a = nb::none(),
            "Return y and the new state; None if no kernel computes that.");
}

}  // namespace nibble
