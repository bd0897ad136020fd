// Finds the facts of a GPU: generation and tier from the architecture that
// Metal reports, the others from a function.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>

#include "csrc/core/device_profile.h"

namespace nibble::metal {

// "applegpu_g14s" -> generation 14, tier 's'. Returns the default profile,
// which fits every GPU, for a string of another form.
DeviceProfile parse_architecture(std::string_view architecture);

// The fields of DeviceProfile of these names.
struct GpuFacts {
  uint32_t cores = 0;
  bool neural = false;
  bool tf32 = true;
};

// Sets the function that finds the facts of this machine's GPU. It is called
// once, when they are first needed. Without a function, nothing is known.
void set_facts(std::function<GpuFacts()> find);

// `profile` with the facts that set_facts() gave.
DeviceProfile with_facts(DeviceProfile profile);

}  // namespace nibble::metal
