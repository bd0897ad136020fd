// What tuning.py and the tuner need of the extension.
#pragma once

#include <nanobind/nanobind.h>

namespace nibble {

void bind_tuning(nanobind::module_& m);

}  // namespace nibble
