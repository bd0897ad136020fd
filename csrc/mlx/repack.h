// Packed matrices, as Python makes them (facts/repack.h). nodes/unpack.cpp
// defines these functions.
#pragma once

#include <optional>
#include <tuple>

#include "csrc/mlx/options.h"
#include "csrc/mlx/packed_memory.h"
#include "mlx/array.h"
#include "mlx/utils.h"

namespace nibble::repack {

namespace mx = mlx::core;

// Lazy arrays that are to replace those of a matrix, and the bytes of the
// packed matrix. Without biases if the format reads none.
using Replacement =
    std::tuple<mx::array, mx::array, std::optional<mx::array>, size_t>;

// Returns the bytes of a packed matrix; 0 if the backend has no other layout
// for it.
size_t packed_bytes(const ops::QuantizedArrays& matrix,
                    const ops::QuantArgs& args);

// Packs a matrix; nullopt if the backend has no other layout for it. It takes
// its bytes from `memory`.
std::optional<Replacement> pack(const ops::QuantizedArrays& matrix,
                                const ops::QuantArgs& args,
                                PackedMemory& memory);

// a[rows]; nullopt if `a` is no lazy array, or not of one matrix.
std::optional<mx::array> rows_of(const mx::array& a,
                                 const mx::array& rows,
                                 mx::StreamOrDevice s);

}  // namespace nibble::repack
