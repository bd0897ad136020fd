// The memory of KV caches that steps write in place (step.h).
#pragma once

#include <memory>

#include "mlx/array.h"
#include "mlx/stream.h"

namespace nibble::cache_memory {

namespace mx = mlx::core;

// Counts a step that has yet to write to the memory of `a`, until the result is
// dropped, by its task. MLX keeps the memory as long.
std::shared_ptr<void> add_writer(const mx::array& a);

// `out` = `in` with the same memory if only `in` and waiting steps have it,
// else with a copy of it.
void take_over(const mx::array& in, mx::array& out, const mx::Stream& stream);

}  // namespace nibble::cache_memory
