// In the place of three of MLX's headers that the front end cannot take
// (../../mlx_kernels.py names them): what its other headers mention of them.
#pragma once

#include "simt/metal.h"

template <class T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T r, T i) : real(r), imag(i) {}
};
using complex64_t = complex_t<float>;

namespace mlx {
using os_log = metal::os_log;
}  // namespace mlx
