#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/simd_avx2_vnni.h"

namespace nibble::cpu {

constinit const IntegerKernels kAvx2VnniInt8Kernels =
    make_integer_kernels<Avx2Vnni, int8_t>();
constinit const IntegerKernels kAvx2VnniInt16Kernels =
    make_integer_kernels<Avx2Vnni, int16_t>();

}  // namespace nibble::cpu
