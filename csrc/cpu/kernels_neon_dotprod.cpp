#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/simd_neon_dotprod.h"

namespace nibble::cpu {

constinit const IntegerKernels kNeonDotprodInt8Kernels =
    make_integer_kernels<NeonDotprod, int8_t>();

}  // namespace nibble::cpu
