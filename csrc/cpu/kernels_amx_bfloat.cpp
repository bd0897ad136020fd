#include "csrc/cpu/floats_tiles-inl.h"
#include "csrc/cpu/simd_amx_bfloat.h"

namespace nibble::cpu {

constinit const BfloatKernels kAmxBfloatKernels = {
    split_rows<AmxBfloat, Bfloat>, multiply_floats<AmxBfloat, Bfloat>};
constinit const BfloatKernels kAmxBfloatPairKernels = {
    split_rows<AmxBfloat, BfloatPair>, multiply_floats<AmxBfloat, BfloatPair>};

}  // namespace nibble::cpu
