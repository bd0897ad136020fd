#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_avx2.h"

namespace nibble::cpu {

constinit const Kernels kAvx2Kernels = make_kernels<Avx2>();
constinit const IntegerKernels kAvx2Int8Kernels =
    make_integer_kernels<Avx2, int8_t>();
constinit const IntegerKernels kAvx2Int16Kernels =
    make_integer_kernels<Avx2, int16_t>();

}  // namespace nibble::cpu
