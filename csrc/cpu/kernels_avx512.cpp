#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_avx512.h"

namespace nibble::cpu {

constinit const Kernels kAvx512Kernels = make_kernels<Avx512>();
constinit const IntegerKernels kAvx512Int8Kernels =
    make_integer_kernels<Avx512, int8_t>();
constinit const IntegerKernels kAvx512Int16Kernels =
    make_integer_kernels<Avx512, int16_t>();

}  // namespace nibble::cpu
