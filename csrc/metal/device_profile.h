// Reads a GPU's generation and tier from the architecture that Metal reports.
#pragma once

#include <string_view>

#include "csrc/core/device_profile.h"

namespace nibble::metal {

// "applegpu_g14s" -> generation 14, tier 's'. Returns the default profile,
// which fits every GPU, for a string of another form.
DeviceProfile parse_architecture(std::string_view architecture);

}  // namespace nibble::metal
