// Which matrices are known to be symmetric: their biases exactly
// -2^(bits - 1) * scales, so that kernels need not read them.
//
// That is a fact about two arrays, found out once and outside of any
// evaluation. It is kept here by the arrays' identity: whatever replaces or
// overwrites one of them is another array, of which nothing is known.
#pragma once

#include <cstdint>

#include "mlx/array.h"

namespace nibble::symmetric {

namespace mx = mlx::core;

// Remembers it of two arrays and keeps both in memory until forget() is called
// with what is returned.
uint64_t remember(const mx::array& scales, const mx::array& biases, int bits);
void forget(uint64_t token);

// Whether it is remembered of these two.
bool known(const mx::array& scales, const mx::array& biases, int bits);

}  // namespace nibble::symmetric
