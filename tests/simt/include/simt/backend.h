// The parts that differ between the machines that run kernels here. Each back
// end defines the address-space words, the integer and half types, and `rt::`:
//
//   rt::lane()                    index of the thread in its simdgroup
//   rt::threadgroup_barrier(...)  rt::simdgroup_barrier(...)
//   rt::exchange(v, from, ...)    the value of lane from(lane)
//   rt::sum(v, ...)               over all 32 lanes
//   rt::multiply_add_8x8(...)     an 8x8 product in the lanes' fragments
#pragma once

// Before a function that stands for one instruction of a GPU.
#ifndef SIMT_HARDWARE
#define SIMT_HARDWARE inline
#endif

#if defined(__OPENCL_CPP_VERSION__)
#include "simt/backend_opencl.h"
#elif defined(__CUDACC__) || defined(__CUDACC_RTC__)
#include "simt/backend_cuda.h"
#else
#error "kernels are compiled by clang -x clcpp, nvcc or NVRTC"
#endif

// Metal 3.1, the version that our kernels need (macOS 14).
#define __METAL_VERSION__ 310
#define METAL_FUNC SIMT_DEVICE inline
// Our kernels' own macro (kernels/shared.h): inlining everything makes x86 code
// that takes several times as long to compile.
#ifndef NIBBLE_INLINE
#define NIBBLE_INLINE inline
#endif
