// The Metal executor of systems that have no Metal.
#include <stdexcept>

#include "csrc/metal/encoder.h"

namespace nibble::metal {
namespace {

[[noreturn]] void no_metal(const char* op) {
  throw std::runtime_error(std::string("[") + op +
                           "] A Metal GPU was required but this build of "
                           "mlx-nibble is for a system without Metal.");
}

}  // namespace

DeviceProfile device_profile(mlx::core::Device) {
  no_metal("device_profile");
}

void encode(const std::vector<LaunchPlan>&,
            const Operands&,
            mlx::core::Stream) {
  no_metal("encode");
}

}  // namespace nibble::metal
