#include "csrc/cpu/layer_table-inl.h"
#include "csrc/cpu/simd_neon.h"

namespace nibble::cpu {

constinit const LayerKernels kNeonLayers = make_layer_kernels<Neon>();

}  // namespace nibble::cpu
