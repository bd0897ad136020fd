#include "csrc/cpu/layer_table-inl.h"
#include "csrc/cpu/simd_avx2.h"

namespace nibble::cpu {

constinit const LayerKernels kAvx2Layers = make_layer_kernels<Avx2>();

}  // namespace nibble::cpu
