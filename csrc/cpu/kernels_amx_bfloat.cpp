#include "csrc/cpu/bfloat_tiles-inl.h"
#include "csrc/cpu/simd_amx_bfloat.h"

namespace nibble::cpu {

constinit const BfloatKernels kAmxBfloatKernels =
    make_bfloat_kernels<AmxBfloat, 1, 1>();
constinit const BfloatKernels kAmxBfloatByPairKernels =
    make_bfloat_kernels<AmxBfloat, 1, 2>();
constinit const BfloatKernels kAmxBfloatPairKernels =
    make_bfloat_kernels<AmxBfloat, 2, 2>();

}  // namespace nibble::cpu
