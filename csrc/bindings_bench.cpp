#include "csrc/bindings_bench.h"

#include "csrc/mlx/facts/machine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace nibble {

void bind_bench(nb::module_& m) {
  m.def("cpu_multiply",
        &machine::cpu_multiply,
        nb::call_guard<nb::gil_scoped_release>(),
        "times"_a,
        "The operations of so many rounds of multiplications on all threads of "
        "the CPU backend, which are done when it returns.");
}

}  // namespace nibble
