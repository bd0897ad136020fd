// Packed matrices, as Python makes them (facts/repack.h). nodes/unpack.cpp
// defines these functions.
#pragma once

#include <optional>
#include <tuple>

#include "mlx/array.h"
#include "mlx/utils.h"

namespace nibble::repack {

namespace mx = mlx::core;

// Packs a matrix. Returns lazy arrays that are to replace its own, and the
// bytes of the packed matrix; nullopt if the backend has no other layout for
// it.
std::optional<std::tuple<mx::array, mx::array, mx::array, size_t>> pack(
    const mx::array& w,
    const mx::array& scales,
    const mx::array& biases,
    int bits,
    int group_size);

// a[rows]; nullopt if `a` is no lazy array, or not of one matrix.
std::optional<mx::array> rows_of(const mx::array& a,
                                 const mx::array& rows,
                                 mx::StreamOrDevice s);

}  // namespace nibble::repack
