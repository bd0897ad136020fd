// The cosines and sines of rotary embeddings.
#pragma once

#include <cstdint>

#include "csrc/cpu/layers.h"

namespace nibble::cpu {

// Positions whose rotations are computed from one sine and cosine each.
inline constexpr int kPositions = 32;

// out [count, 2, whole_vectors(dims / 2)] = cos and sin of the angles of
// `count` positions, at most kPositions. A rotation has the same bits whatever
// the other positions are.
void fill_rotations(const Rope& p, int64_t position, int count, float* out);

// Returns [2, whole_vectors(dims / 2)], the same of one position, until the
// thread's next call. A thread keeps those of recent positions: each layer of a
// model has queries and keys at the positions of a token.
const float* recent_rotation(const Rope& p, int64_t position);

}  // namespace nibble::cpu
