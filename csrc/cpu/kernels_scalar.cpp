#include "csrc/cpu/int8-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_scalar.h"

namespace nibble::cpu {

constinit const Kernels kScalarKernels = make_kernels<Scalar>();
constinit const Int8Kernels kScalarInt8Kernels = make_int8_kernels<Scalar>();

}  // namespace nibble::cpu
