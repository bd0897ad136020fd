#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_avx512.h"

namespace nibble::cpu {

constinit const Kernels kAvx512Kernels = make_kernels<Avx512>();
constinit const Int8Kernels kAvx512Int8Kernels = make_int8_kernels<Avx512>();

}  // namespace nibble::cpu
