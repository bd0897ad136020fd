// Functions of libraries that are there only beside MLX's CUDA backend: its own
// libmlx, the driver and NVRTC. The extension links none of them, so that one
// file loads with every backend of MLX.
//
// MLX exports the class that records CUDA graphs, but its headers need CUDA's.
// So the functions are looked up by their linker names, which are those of
// 0.32.4. 0.32.3 does not export them, and MLX computes everything there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::cuda {

// CUDA's types, as its headers define them.
using Function = struct CUfunc_st*;
using Module = struct CUmod_st*;
using Result = int;  // CUresult and nvrtcResult; 0 is success
struct Dim3Value {
  unsigned x = 1, y = 1, z = 1;
};

// mlx::core::cu of 0.32.4 (mlx/backend/cuda/device.h). `Encoder` is a
// CommandEncoder&.
using Encoder = void*;
struct Mlx {
  Encoder (*get_command_encoder)(mlx::core::Stream);
  void (*set_input_array)(Encoder, const mlx::core::array&);
  void (*set_output_array)(Encoder, const mlx::core::array&);
  void (*add_kernel_node_raw)(Encoder,
                              Function,
                              Dim3Value grid,
                              Dim3Value block,
                              Dim3Value cluster,
                              uint32_t shared_bytes,
                              void** params);
  void (*add_completed_handler)(Encoder, std::function<void()>);
};

// The memory of an array (mlx/backend/cuda/allocator.h).
struct CudaBuffer {
  void* data;
  size_t size;
  int device;
};

struct Driver {
  Result (*cuCtxGetDevice)(int*);
  Result (*cuDeviceGetAttribute)(int*, int attribute, int device);
  Result (*cuModuleLoadData)(Module*, const void*);
  Result (*cuModuleGetFunction)(Function*, Module, const char*);
  Result (*cuFuncSetAttribute)(Function, int attribute, int value);
  // Null with an old driver.
  Result (*cuTensorMapEncodeTiled)(void* map,
                                   int type,
                                   uint32_t dimensions,
                                   void* matrix,
                                   const uint64_t* sizes,
                                   const uint64_t* strides,
                                   const uint32_t* box,
                                   const uint32_t* steps,
                                   int interleave,
                                   int swizzle,
                                   int promotion,
                                   int fill);
};

struct Nvrtc {
  using Program = struct _nvrtcProgram*;
  Result (*nvrtcCreateProgram)(Program*,
                               const char* text,
                               const char* name,
                               int headers,
                               const char* const* texts,
                               const char* const* names);
  Result (*nvrtcCompileProgram)(Program, int, const char* const* options);
  Result (*nvrtcGetProgramLogSize)(Program, size_t*);
  Result (*nvrtcGetProgramLog)(Program, char*);
  Result (*nvrtcGetCUBINSize)(Program, size_t*);
  Result (*nvrtcGetCUBIN)(Program, char*);
  Result (*nvrtcDestroyProgram)(Program*);
};

struct Symbols {
  Mlx mlx;
  Driver driver;
  Nvrtc nvrtc;
};

// All of them; null if one is missing.
const Symbols* symbols();

}  // namespace nibble::cuda
