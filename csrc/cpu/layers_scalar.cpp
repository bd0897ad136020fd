#include "csrc/cpu/layer_table-inl.h"
#include "csrc/cpu/simd_scalar.h"

namespace nibble::cpu {

constinit const LayerKernels kScalarLayers = make_layer_kernels<Scalar>();

}  // namespace nibble::cpu
