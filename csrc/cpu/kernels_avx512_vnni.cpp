#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/simd_avx512_vnni.h"

namespace nibble::cpu {

constinit const IntegerKernels kAvx512VnniInt8Kernels =
    make_integer_kernels<Avx512Vnni, int8_t>();
constinit const IntegerKernels kAvx512VnniInt16Kernels =
    make_integer_kernels<Avx512Vnni, BytePair>();

}  // namespace nibble::cpu
