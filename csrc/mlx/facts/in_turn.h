// Indices that name the matrices of x in turn: what gather_qmm means if it gets
// none. A small array of them is made once and kept. Else each call would add
// two nodes to a graph, and a GPU would copy a view for each launch.
#pragma once

#include <optional>

#include "mlx/array.h"

namespace nibble::in_turn {

namespace mx = mlx::core;

// 0, 1, 2, ... of the shape `batch`, broadcast to `shape`. nullopt if there are
// too many to keep.
std::optional<mx::array> indices(const mx::Shape& batch,
                                 const mx::Shape& shape);

}  // namespace nibble::in_turn
