// The quantized formats that our kernels support: which arrays a matrix [N, K]
// has, and how many words, groups and bytes they take. Every other file asks
// the format. docs/reference/formats.md shows the layout in a picture.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "csrc/core/dtype.h"
#include "kernels/shared.h"

namespace nibble {

// How a code q becomes a value, with scales and biases [N, K / group_size].
enum class Mode : uint8_t {
  kAffine,     // scale * q + bias
  kSymmetric,  // scale * (q - 2^(bits - 1)): affine, but no bias is read
};

// One row of the table of modes.
struct ModeInfo {
  Mode mode;
  std::string_view name;         // in MODES of formats.py, and of a trial
  std::string_view mlx_name;     // the `mode` argument of mlx.core
  std::string_view label;        // in a kernel's name
  std::string_view kernel_type;  // of kernels/format.h
  std::span<const int> bits;
  std::span<const int> group_sizes;
  std::span<const Dtype> scale_dtypes;  // of scales, and of biases if any
  int default_bits;                     // of MLX
  int default_group_size;               // of MLX
  bool stores_biases;                   // true if MLX's mode has them
  bool has_biases;                      // true if kernels read them
  float bias_of_range = 0;  // bias / (scale * 2^bits), if none is read
};

// The widths and group sizes of the two affine modes.
inline constexpr int kBits[] = {2, 3, 4, 5, 6, 8};
inline constexpr int kGroupSizes[] = {32, 64, 128};

inline constexpr ModeInfo kModes[] = {
    {.mode = Mode::kAffine,
     .name = "affine",
     .mlx_name = "affine",
     .label = "",
     .kernel_type = "Affine",
     .bits = kBits,
     .group_sizes = kGroupSizes,
     .scale_dtypes = kDtypes,
     .default_bits = 4,
     .default_group_size = 64,
     .stores_biases = true,
     .has_biases = true},
    {.mode = Mode::kSymmetric,
     .name = "symmetric",
     .mlx_name = "affine",
     .label = "_sym",
     .kernel_type = "Symmetric",
     .bits = kBits,
     .group_sizes = kGroupSizes,
     .scale_dtypes = kDtypes,
     .default_bits = 4,
     .default_group_size = 64,
     .stores_biases = true,
     .has_biases = false,
     .bias_of_range = -0.5f},
};

constexpr const ModeInfo& mode_info(Mode mode) {
  return kModes[static_cast<size_t>(mode)];
}
static_assert(std::ranges::all_of(kModes, [](const ModeInfo& info) {
  return &info == &mode_info(info.mode);
}));

// ModeInfo::has_biases as bits, one for each mode.
inline constexpr uint32_t kModesWithBiases = [] {
  uint32_t bits = 0;
  for (const ModeInfo& info : kModes) {
    bits |= uint32_t{info.has_biases} << static_cast<int>(info.mode);
  }
  return bits;
}();

// The first mode that MLX gives this name; null if our kernels support none.
constexpr const ModeInfo* find_mode(std::string_view mlx_name) {
  auto found = std::ranges::find(kModes, mlx_name, &ModeInfo::mlx_name);
  return found == std::end(kModes) ? nullptr : found;
}

// The smallest group of all modes.
inline constexpr int kSmallestGroup = [] {
  int smallest = kModes[0].group_sizes[0];
  for (const ModeInfo& info : kModes) {
    smallest = std::min(smallest, std::ranges::min(info.group_sizes));
  }
  return smallest;
}();

// Codes are `bits`-wide fields of a row's little-endian bit stream.
struct QuantFormat {
  int bits = 4;
  int group_size = 64;
  Mode mode = Mode::kAffine;

  bool operator==(const QuantFormat&) const = default;

  constexpr const ModeInfo& info() const { return mode_info(mode); }
  // True if kernels read biases. Kernels of few rows ask for every group of
  // rows: the table itself would cost them up to 14 % (int8, 576 x 576).
  constexpr bool has_biases() const {
    return kModesWithBiases >> static_cast<int>(mode) & 1;
  }
  // bias / scale of a group, if no biases are read.
  constexpr float bias_of_scale() const {
    return info().bias_of_range * static_cast<float>(1 << bits);
  }
  // Arrays of one value for each group: scales, and biases if they are read.
  constexpr int group_arrays() const { return has_biases() ? 2 : 1; }
  constexpr int words_per_row(int K) const {
    return static_cast<int>(static_cast<int64_t>(K) * bits / 32);
  }
  // The shortest run of codes that fills whole words.
  constexpr int run_codes() const { return nibble_run_codes(bits); }
  constexpr int groups_per_row(int K) const { return K / group_size; }
};

// The mode of affine arrays, `symmetric` if their biases are known to follow
// from the scales.
constexpr Mode affine_mode(bool symmetric) {
  return symmetric ? Mode::kSymmetric : Mode::kAffine;
}

// True if our kernels support this format; MLX's own operation computes all
// others.
constexpr bool supported(const QuantFormat& format) {
  auto contains = [](std::span<const int> values, int value) {
    return std::ranges::find(values, value) != values.end();
  };
  return contains(format.info().bits, format.bits) &&
         contains(format.info().group_sizes, format.group_size);
}

// True if our kernels support matrices of this format with K columns.
constexpr bool supported(const QuantFormat& format, int K) {
  return supported(format) && K % format.group_size == 0;
}

}  // namespace nibble
