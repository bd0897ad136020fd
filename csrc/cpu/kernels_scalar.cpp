#include "csrc/cpu/integers-inl.h"
#include "csrc/cpu/kernels-inl.h"
#include "csrc/cpu/simd_scalar.h"

namespace nibble::cpu {

constinit const Kernels kScalarKernels = make_kernels<Scalar>();
constinit const IntegerKernels kScalarInt8Kernels =
    make_integer_kernels<Scalar, int8_t>();

}  // namespace nibble::cpu
