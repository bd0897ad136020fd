// Reads what a GPU is from the architecture string that Metal reports.
#pragma once

#include <string_view>

#include "csrc/core/device_profile.h"

namespace nibble::metal {

// "applegpu_g14s" -> generation 14, tier 's'. Any other string is a GPU that
// we know nothing of: the default profile, which fits every one.
DeviceProfile parse_architecture(std::string_view architecture);

}  // namespace nibble::metal
