#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/simd_neon_i8mm.h"

namespace nibble::cpu {

constinit const IntegerKernels kNeonI8mmInt8Kernels =
    make_integer_kernels<NeonI8mm, int8_t>();

}  // namespace nibble::cpu
