#include "csrc/cuda/library.h"

#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>

#include "csrc/core/kernel_source.h"

namespace nibble::cuda {
namespace {

// Values of CUdevice_attribute and CUfunction_attribute.
constexpr int kMajor = 75;
constexpr int kMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;

// CUDA gives more shared memory only to kernels that ask for it.
constexpr uint32_t kSharedBytesUnasked = 48 << 10;

std::string text_of(const std::string& kernel) {
  if (kernel == kCudaContiguousKernel) {
    return cuda_contiguous_source();
  }
  std::optional<KernelId> id = parse_kernel_name(kernel);
  if (!id) {
    throw std::invalid_argument(
        "[function] a known kernel was required but got " + kernel + ".");
  }
  return cuda_source(*id);
}

std::string architecture(int device) {
  const Driver& driver = symbols()->driver;
  int major = 0, minor = 0;
  require_success(driver.cuDeviceGetAttribute(&major, kMajor, device),
                  "cuDeviceGetAttribute");
  require_success(driver.cuDeviceGetAttribute(&minor, kMinor, device),
                  "cuDeviceGetAttribute");
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

std::string compile(const std::string& kernel, const std::string& arch) {
  const Nvrtc& nvrtc = symbols()->nvrtc;
  Nvrtc::Program program = nullptr;
  require_success(nvrtc.nvrtcCreateProgram(&program,
                                           text_of(kernel).c_str(),
                                           kernel.c_str(),
                                           0,
                                           nullptr,
                                           nullptr),
                  "nvrtcCreateProgram");
  std::string target = "--gpu-architecture=" + arch;
  const char* options[] = {target.c_str(), "--std=c++20"};
  Result result = nvrtc.nvrtcCompileProgram(program, 2, options);
  std::string log, cubin;
  size_t size = 0;
  if (result != 0) {
    nvrtc.nvrtcGetProgramLogSize(program, &size);
    log.resize(size);
    nvrtc.nvrtcGetProgramLog(program, log.data());
  } else {
    nvrtc.nvrtcGetCUBINSize(program, &size);
    cubin.resize(size);
    result = nvrtc.nvrtcGetCUBIN(program, cubin.data());
  }
  nvrtc.nvrtcDestroyProgram(&program);
  if (result != 0) {
    throw std::runtime_error("[compile] Unable to build CUDA kernel " + kernel +
                             " for " + arch + ": " + log);
  }
  return cubin;
}

}  // namespace

void require_success(Result result, const char* op) {
  if (result != 0) {
    throw std::runtime_error("[" + std::string(op) +
                             "] success was required but got the error " +
                             std::to_string(result) + ".");
  }
}

Function function(const std::string& kernel, uint32_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::pair<int, std::string>, Function> functions;
  const Driver& driver = symbols()->driver;
  int device = 0;
  require_success(driver.cuCtxGetDevice(&device), "cuCtxGetDevice");
  std::lock_guard lock(mutex);
  auto [found, is_new] = functions.try_emplace({device, kernel}, nullptr);
  if (!is_new && found->second) {
    return found->second;
  }
  std::string cubin = compile(kernel, architecture(device));
  Module module = nullptr;
  require_success(driver.cuModuleLoadData(&module, cubin.data()),
                  "cuModuleLoadData");
  Function function = nullptr;
  require_success(driver.cuModuleGetFunction(&function, module, kernel.c_str()),
                  "cuModuleGetFunction");
  if (shared_bytes > kSharedBytesUnasked) {
    require_success(
        driver.cuFuncSetAttribute(
            function, kMaxDynamicSharedBytes, static_cast<int>(shared_bytes)),
        "cuFuncSetAttribute");
  }
  return found->second = function;
}

}  // namespace nibble::cuda
