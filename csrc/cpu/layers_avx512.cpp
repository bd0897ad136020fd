#include "csrc/cpu/layer_table-inl.h"
#include "csrc/cpu/simd_avx512.h"

namespace nibble::cpu {

constinit const LayerKernels kAvx512Layers = make_layer_kernels<Avx512>();

}  // namespace nibble::cpu
