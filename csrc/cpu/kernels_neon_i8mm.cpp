#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/simd_neon_i8mm.h"

namespace nibble::cpu {

constinit const Int8Kernels kNeonI8mmInt8Kernels =
    make_int8_kernels<NeonI8mm>();

}  // namespace nibble::cpu
