#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_scalar.h"

namespace nibble::cpu {

constinit const Kernels kScalarKernels = make_kernels<Scalar>();

}  // namespace nibble::cpu
