#include "csrc/cuda/symbols.h"

#include <dlfcn.h>

#include <initializer_list>
#include <optional>

#include "mlx/version.h"

namespace nibble::cuda {
namespace {

// The library that holds this function of MLX's, which is loaded.
void* library_of(const void* function) {
  Dl_info info;
  return dladdr(function, &info)
             ? dlopen(info.dli_fname, RTLD_NOLOAD | RTLD_NOW)
             : nullptr;
}

void* loaded(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_NOW)) {
      return library;
    }
  }
  return nullptr;
}

template <typename F>
bool find(void* library, const char* name, F& function) {
  function = library ? reinterpret_cast<F>(dlsym(library, name)) : nullptr;
  return function != nullptr;
}

bool find(Mlx& f) {
  void* library =
      library_of(reinterpret_cast<const void*>(&mlx::core::version));
  constexpr const char* kEncoder = "_ZN3mlx4core2cu14CommandEncoder";
  auto member = [&](const char* rest, auto& function) {
    return find(library, (std::string(kEncoder) + rest).c_str(), function);
  };
  return find(library,
              "_ZN3mlx4core2cu19get_command_encoderENS0_6StreamE",
              f.get_command_encoder) &&
         member("15set_input_arrayERKNS0_5arrayE", f.set_input_array) &&
         member("16set_output_arrayERKNS0_5arrayE", f.set_output_array) &&
         member("19add_kernel_node_rawEP9CUfunc_st4dim3S5_S5_jPPv",
                f.add_kernel_node_raw) &&
         member("21add_completed_handlerESt8functionIFvvEE",
                f.add_completed_handler);
}

#define NIBBLE_FIND(function) find(library, #function, f.function)

bool find(Driver& f) {
  void* library = loaded({"libcuda.so.1"});
  NIBBLE_FIND(cuTensorMapEncodeTiled);
  return NIBBLE_FIND(cuCtxGetDevice) && NIBBLE_FIND(cuDeviceGetAttribute) &&
         NIBBLE_FIND(cuModuleLoadData) && NIBBLE_FIND(cuModuleGetFunction) &&
         NIBBLE_FIND(cuFuncSetAttribute);
}

bool find(Nvrtc& f) {
  void* library = loaded({"libnvrtc.so.13", "libnvrtc.so.12"});
  return NIBBLE_FIND(nvrtcCreateProgram) && NIBBLE_FIND(nvrtcCompileProgram) &&
         NIBBLE_FIND(nvrtcGetProgramLogSize) &&
         NIBBLE_FIND(nvrtcGetProgramLog) && NIBBLE_FIND(nvrtcGetCUBINSize) &&
         NIBBLE_FIND(nvrtcGetCUBIN) && NIBBLE_FIND(nvrtcDestroyProgram);
}

#undef NIBBLE_FIND

}  // namespace

const Symbols* symbols() {
  static const std::optional<Symbols> all = []() -> std::optional<Symbols> {
    Symbols found{};
    bool complete = find(found.mlx) && find(found.driver) && find(found.nvrtc);
    return complete ? std::optional(found) : std::nullopt;
  }();
  return all ? &*all : nullptr;
}

}  // namespace nibble::cuda
