// Activations in bfloat16 as tiles read them.
#pragma once

namespace nibble::cpu {

// The numbers of a row of x that lie together: those of a tile. The codes of
// QuantizedRows are then [runs, rows, planes, kBfloatRun].
inline constexpr int kBfloatRun = 32;

}  // namespace nibble::cpu
