#include "csrc/mlx/executor.h"

#include "csrc/cuda/encoder.h"
#include "csrc/cuda/memory.h"
#include "csrc/metal/encoder.h"
#include "mlx/allocator.h"

namespace nibble::executor {

bool is_available() {
  return metal::is_available() || cuda::is_available();
}

Api api() {
  return cuda::is_available() ? Api::kCuda : Api::kMetal;
}

DeviceProfile device_profile(mx::Device device) {
  return cuda::is_available() ? cuda::device_profile()
                              : metal::device_profile(device);
}

void compile(const std::vector<std::string>& kernels) {
  if (cuda::is_available()) {
    cuda::compile(kernels);
  } else if (metal::is_available()) {
    metal::compile(kernels);
  }
}

void allocate(mx::array& out, mx::Stream stream) {
  if (cuda::is_available()) {
    cuda::allocate(out, stream);
  } else {
    out.set_data(mx::allocator::malloc(out.nbytes()));
  }
}

void encode(const std::vector<LaunchPlan>& launches,
            const Operands& operands,
            mx::Stream stream) {
  cuda::is_available() ? cuda::encode(launches, operands, stream)
                       : metal::encode(launches, operands, stream);
}

}  // namespace nibble::executor
