#include "csrc/metal/library.h"

#include <optional>

#include "csrc/core/error.h"
#include "csrc/core/kernel_name.h"
#include "csrc/core/kernel_source.h"

namespace nibble::metal {
namespace {

// The name names this package, its version and every parameter: MLX finds a
// library by its name alone, among those of all packages.
std::string library_name(const std::string& kernel) {
  return "mlx_nibble_" NIBBLE_VERSION "_" + kernel;
}

std::string source_of(const std::string& kernel) {
  if (kernel == kAlignKernel) {
    return align_source();
  }
  std::optional<KernelId> id = parse_kernel_name(kernel);
  require(id.has_value(),
          "pipeline",
          "a known kernel was required but got ",
          kernel);
  return kernel_source(*id);
}

}  // namespace

MTL::ComputePipelineState* pipeline(mlx::core::metal::Device& device,
                                    const std::string& kernel) {
  MTL::Library* library = device.get_library(library_name(kernel),
                                             [&] { return source_of(kernel); });
  return device.get_kernel(kernel, library);
}

}  // namespace nibble::metal
