// <metal_logging>: accepted and ignored.
#pragma once

#include "simt/backend.h"

namespace metal {

struct os_log {
  SIMT_DEVICE constexpr os_log(const constant char*, const constant char*) {}
  template <class... Arguments>
  SIMT_DEVICE void log_debug(const constant char*, Arguments...) const {}
};

}  // namespace metal
