#include "csrc/cpu/integers_tiles-inl.h"
#include "csrc/cpu/simd_amx.h"

namespace nibble::cpu {

constinit const IntegerKernels kAmxInt8Kernels =
    make_tile_kernels<Amx, int8_t>();
constinit const IntegerKernels kAmxInt16Kernels =
    make_tile_kernels<Amx, BytePair>();

}  // namespace nibble::cpu
