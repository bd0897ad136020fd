#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_neon.h"

namespace nibble::cpu {

constinit const Kernels kNeonKernels = make_kernels<Neon>();
constinit const Int8Kernels kNeonInt8Kernels = make_int8_kernels<Neon>();

}  // namespace nibble::cpu
