#include "csrc/cuda/library.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <thread>
#include <unordered_map>
#include <utility>

#include "csrc/core/kernel_source.h"

namespace nibble::cuda {
namespace {

// Values of CUdevice_attribute and CUfunction_attribute.
constexpr int kMajor = 75;
constexpr int kMinor = 76;
constexpr int kMaxDynamicSharedBytes = 8;

// The major number of the compute capability that has wgmma.
constexpr int kWgmmaMajor = 9;

// CUDA gives more shared memory only to kernels that ask for it.
constexpr uint32_t kSharedBytesUnasked = 48 << 10;

std::string text_of(const std::string& kernel) {
  if (is_contiguous_kernel(kernel)) {
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
  // "a" allows instructions that only this one has.
  return "sm_" + std::to_string(major) + std::to_string(minor) +
         (major == kWgmmaMajor ? "a" : "");
}

std::string cubin_of(const std::string& kernel, const std::string& arch) {
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

// The device of the thread's context; the first if it has none yet.
int current_device() {
  int device = 0;
  return symbols()->driver.cuCtxGetDevice(&device) == 0 ? device : 0;
}

// The kernels that were compiled, by device and by name.
struct Compiled {
  std::mutex mutex;
  std::map<int, std::unordered_map<std::string, Function>> functions;
  std::unordered_map<std::string, std::string> cubins;  // not yet loaded
};

Compiled& compiled() {
  static Compiled of_process;
  return of_process;
}

}  // namespace

void require_success(Result result, const char* op) {
  if (result != 0) {
    throw std::runtime_error("[" + std::string(op) +
                             "] success was required but got the error " +
                             std::to_string(result) + ".");
  }
}

bool has_wgmma() {
  // Every product asks. 0: not known yet.
  static std::atomic<int> major = 0;
  if (major == 0) {
    int found = 0;
    if (symbols()->driver.cuDeviceGetAttribute(
            &found, kMajor, current_device()) == 0) {
      major = found;
    }
  }
  return major == kWgmmaMajor;
}

void compile(const std::vector<std::string>& kernels) {
  std::string arch = architecture(current_device());
  Compiled& known = compiled();
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < kernels.size(); i = next++) {
      try {
        std::string cubin = cubin_of(kernels[i], arch);
        std::lock_guard lock(known.mutex);
        known.cubins.emplace(kernels[i] + arch, std::move(cubin));
      } catch (const std::exception&) {
        // function() fails again, and its caller learns which kernel it was.
      }
    }
  };
  std::vector<std::thread> others;
  size_t threads =
      std::min<size_t>(kernels.size(), std::thread::hardware_concurrency());
  for (size_t i = 1; i < threads; ++i) {
    others.emplace_back(work);
  }
  work();
  for (std::thread& other : others) {
    other.join();
  }
}

Function function(const std::string& kernel, uint32_t shared_bytes) {
  const Driver& driver = symbols()->driver;
  int device = current_device();
  Compiled& known = compiled();
  std::lock_guard lock(known.mutex);
  auto& functions = known.functions[device];
  auto found = functions.find(kernel);
  if (found != functions.end()) {
    return found->second;
  }
  std::string arch = architecture(device);
  auto kept = known.cubins.extract(kernel + arch);
  std::string cubin = kept ? std::move(kept.mapped()) : cubin_of(kernel, arch);
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
  functions.emplace(kernel, function);
  return function;
}

}  // namespace nibble::cuda
