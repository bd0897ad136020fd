// The parts of the Python module; tests/metal builds another module from them.
#pragma once

#include <nanobind/nanobind.h>

namespace nibble {

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
