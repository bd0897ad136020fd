// The parts of the Python module; tests/metal builds another module from them.
#pragma once

#include <nanobind/nanobind.h>

#include <optional>
#include <tuple>
#include <utility>

#include "csrc/mlx/options.h"

namespace nibble {

// (w, scales, biases), as mlx.core.quantize returns them.
using Triple = std::
    tuple<mlx::core::array, mlx::core::array, std::optional<mlx::core::array>>;

inline ops::QuantizedArrays as_arrays(const Triple& q) {
  return {std::get<0>(q), std::get<1>(q), std::get<2>(q)};
}

// Binds a function whose first kUnnamed parameters are positional only. `more`
// describes the others, and ends with the docstring.
template <size_t kUnnamed, typename Function, typename... More>
void define(nanobind::module_& m,
            const char* name,
            Function function,
            const More&... more) {
  [&]<size_t... i>(std::index_sequence<i...>) {
    m.def(name, function, ((void)i, nanobind::arg())..., more...);
  }(std::make_index_sequence<kUnnamed>{});
}

// The operations (ops.py, fast.py).
void bind_ops(nanobind::module_& m);
// The layers (nn.py).
void bind_layers(nanobind::module_& m);
// The recorded decoder blocks (acceleration/blocks.py).
void bind_steps(nanobind::module_& m);
// Activations, dense products and recurrences (fast.py,
// acceleration/stand_ins.py).
void bind_functions(nanobind::module_& m);
// The trials of kernels (machine/verdicts.py).
void bind_self_check(nanobind::module_& m);
// The tables of measured choices (machine/tuned_table.py, tune/).
void bind_tuning(nanobind::module_& m);

}  // namespace nibble
