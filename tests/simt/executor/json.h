// Reports as JSON, for Python.
#pragma once

#include <string>
#include <vector>

#include "findings.h"

namespace simt {

class Monitor;

std::string quoted(const std::string& text);

std::string to_json(const std::vector<Finding>& findings,
                    const Counters& counters,
                    const Monitor* monitor);

}  // namespace simt
