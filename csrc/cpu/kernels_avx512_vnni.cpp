#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/simd_avx512_vnni.h"

namespace nibble::cpu {

constinit const Int8Kernels kAvx512VnniInt8Kernels =
    make_int8_kernels<Avx512Vnni>();

}  // namespace nibble::cpu
