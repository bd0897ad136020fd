// The quantized formats that our kernels support: which arrays a matrix [N, K]
// has, and how many words, groups and bytes they take. Every other file asks
// the format. docs/reference/formats.md shows the layout in a picture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble {

// How a code q becomes a value, with scales and biases [N, K / group_size].
enum class Mode : uint8_t {
  kAffine,     // scale * q + bias
  kSymmetric,  // scale * (q - 2^(bits - 1)): affine, but no bias is read
};

// One row of the table of modes.
struct ModeInfo {
  Mode mode;
  std::string_view mlx_name;     // the `mode` argument of mlx.core
  std::string_view label;        // in a kernel's name
  std::string_view kernel_type;  // of kernels/format.h
  bool has_biases;               // true if kernels read them
};

inline constexpr ModeInfo kModes[] = {
    {Mode::kAffine, "affine", "", "Affine", true},
    {Mode::kSymmetric, "affine", "_sym", "Symmetric", false},
};

// The widths and group sizes of every mode above.
inline constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
inline constexpr int kGroupSizes[] = {32, 64, 128};

constexpr const ModeInfo& mode_info(Mode mode) {
  return kModes[static_cast<size_t>(mode)];
}

// Codes are `bits`-wide fields of a row's little-endian bit stream.
struct QuantFormat {
  int bits = 4;
  int group_size = 64;
  Mode mode = Mode::kAffine;

  bool operator==(const QuantFormat&) const = default;

  constexpr bool has_biases() const { return mode_info(mode).has_biases; }
  // Arrays of one value for each group: scales, and biases if they are read.
  constexpr int group_arrays() const { return has_biases() ? 2 : 1; }
  constexpr int words_per_row(int K) const {
    return static_cast<int>(static_cast<int64_t>(K) * bits / 32);
  }
  // The shortest run of codes that fills whole words.
  constexpr int run_codes() const {
    return bits % 2 ? 32 : bits == 6 ? 16 : 32 / bits;
  }
  constexpr int groups_per_row(int K) const { return K / group_size; }
};

// The mode of affine arrays whose biases are known, or not, to follow from the
// scales.
constexpr Mode affine_mode(bool symmetric) {
  return symmetric ? Mode::kSymmetric : Mode::kAffine;
}

// True if our kernels support this format; MLX's own operation computes all
// others.
constexpr bool supported(const QuantFormat& format) {
  bool bits = false, group_size = false;
  for (int b : kBits) bits |= b == format.bits;
  for (int g : kGroupSizes) group_size |= g == format.group_size;
  return bits && group_size;
}

}  // namespace nibble
