#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_avx2.h"

namespace nibble::cpu {

constinit const Kernels kAvx2Kernels = make_kernels<Avx2>();
constinit const Int8Kernels kAvx2Int8Kernels = make_int8_kernels<Avx2>();

}  // namespace nibble::cpu
