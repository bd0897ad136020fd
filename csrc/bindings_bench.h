// What measuring needs of the extension.
#pragma once

#include <nanobind/nanobind.h>

namespace nibble {

void bind_bench(nanobind::module_& m);

}  // namespace nibble
