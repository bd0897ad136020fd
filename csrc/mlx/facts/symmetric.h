// The matrices known to be symmetric: their biases are exactly
// -2^(bits - 1) * scales, so that kernels need not read them.
//
// The Python package finds this out once, outside of any evaluation. It is kept
// here by the identity of the two arrays. An array that replaces or overwrites
// one of them is another array, of which nothing is known.
#pragma once

#include <cstdint>

#include "mlx/array.h"

namespace nibble::symmetric {

namespace mx = mlx::core;

// Remembers two arrays as symmetric. Returns a token, and keeps both in memory
// until forget() gets it.
uint64_t remember(const mx::array& scales, const mx::array& biases, int bits);
void forget(uint64_t token);

// True if these two are remembered with these bits.
bool known(const mx::array& scales, const mx::array& biases, int bits);

}  // namespace nibble::symmetric
