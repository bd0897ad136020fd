// The Metal executor on systems without Metal.
#include <stdexcept>
#include <string>

#include "csrc/metal/encoder.h"

namespace nibble::metal {
namespace {

[[noreturn]] void no_metal(const std::string& op) {
  throw std::runtime_error("[" + op +
                           "] a build for macOS was required but this one is "
                           "for a system without Metal.");
}

}  // namespace

bool is_available() {
  return false;
}

DeviceProfile device_profile(mlx::core::Device) {
  no_metal("device_profile");
}

void set_fences(bool) {}

void compile(const std::vector<std::string>&) {
  no_metal("compile");
}

void encode(const std::vector<LaunchPlan>&,
            const Operands&,
            mlx::core::Stream) {
  no_metal("encode");
}

}  // namespace nibble::metal
