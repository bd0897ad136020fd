#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/simd_avx2_vnni.h"

namespace nibble::cpu {

constinit const Int8Kernels kAvx2VnniInt8Kernels =
    make_int8_kernels<Avx2Vnni>();

}  // namespace nibble::cpu
