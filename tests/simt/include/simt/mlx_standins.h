// Replaces three of MLX's headers that the front end refuses
// (../../mlx_kernels.py names them): the declarations that MLX's other headers
// use.
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
