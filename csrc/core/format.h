// MLX's affine layout, stated once: how many words, groups and bytes a
// quantized matrix [N, K] takes. docs/format.md tells it with a picture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble {

// w_hat[n, k] = scales[n, k / group_size] * q[n, k] + biases[n, k / group_size]
// with q the k-th `bits`-wide field of row n's little-endian bit stream.
struct QuantFormat {
  int bits = 4;
  int group_size = 64;
  // All biases are -2^(bits - 1) * scale, so that no kernel need read them.
  bool symmetric = false;

  bool operator==(const QuantFormat&) const = default;

  constexpr int words_per_row(int K) const {
    return static_cast<int>(static_cast<int64_t>(K) * bits / 32);
  }
  // The shortest run of codes that is made of whole words.
  constexpr int run_codes() const {
    return bits % 2 ? 32 : bits == 6 ? 16 : 32 / bits;
  }
  constexpr int groups_per_row(int K) const { return K / group_size; }
};

inline constexpr int kHeldBits[] = {2, 3, 4, 5, 6, 8};
inline constexpr int kHeldGroupSizes[] = {32, 64, 128};

// True if our kernels hold this format; anything else is MLX's own op.
constexpr bool held(const QuantFormat& format) {
  bool bits = false, group_size = false;
  for (int b : kHeldBits) bits |= b == format.bits;
  for (int g : kHeldGroupSizes) group_size |= g == format.group_size;
  return bits && group_size;
}

}  // namespace nibble
