// What selfcheck.py needs of the extension.
#pragma once

#include <nanobind/nanobind.h>

namespace nibble {

void bind_self_check(nanobind::module_& m);

}  // namespace nibble
