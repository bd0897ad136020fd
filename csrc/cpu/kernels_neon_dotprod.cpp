#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/simd_neon_dotprod.h"

namespace nibble::cpu {

constinit const Int8Kernels kNeonDotprodInt8Kernels =
    make_int8_kernels<NeonDotprod>();

}  // namespace nibble::cpu
