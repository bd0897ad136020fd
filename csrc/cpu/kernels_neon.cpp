#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_neon.h"

namespace nibble::cpu {

constinit const Kernels kNeonKernels = make_kernels<Neon>();
constinit const IntegerKernels kNeonInt8Kernels =
    make_integer_kernels<Neon, int8_t>();

}  // namespace nibble::cpu
