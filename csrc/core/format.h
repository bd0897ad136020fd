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
  // scale * (the float that q is), without a bias:
  kMxfp4,
  kNvfp4,
  kMxfp8,
};

// The number that a code is.
enum class Element : uint8_t {
  kInteger,  // unsigned
  kE2m1,     // a float: sign, 2 bits of exponent, 1 of mantissa
  kE4m3,     // a float: sign, 4 bits of exponent, 3 of mantissa; with NaN
};

// One row of the table of modes.
struct ModeInfo {
  Mode mode;
  std::string_view name;         // in MODES of formats.py, and of a trial
  std::string_view mlx_name;     // the `mode` argument of mlx.core
  std::string_view label;        // in a kernel's name
  std::string_view kernel_type;  // of kernels/format.h, cuda/formats.h
  Element element;
  std::span<const int> bits;
  std::span<const int> gpu_bits;  // those of Metal kernels
  std::span<const int> group_sizes;
  std::span<const Dtype> scale_dtypes;  // of scales, and of biases if any
  int default_bits;                     // of MLX
  int default_group_size;               // of MLX
  bool stores_biases;                   // true if MLX's mode has them
  bool has_biases;                      // true if kernels read them
  float bias_of_range = 0;  // bias / (scale * 2^bits), if none is read
};

// The widths and group sizes of the two affine modes.
inline constexpr int kBits[] = {1, 2, 3, 4, 5, 6, 8};
inline constexpr int kGroupSizes[] = {32, 64, 128};
// Those of the float modes: MLX has one format in each.
inline constexpr int kFp4Bits[] = {4}, kFp8Bits[] = {8};
inline constexpr int kMxGroupSizes[] = {32}, kNvGroupSizes[] = {16};
inline constexpr Dtype kMxScales[] = {Dtype::kE8m0},
                       kNvScales[] = {Dtype::kE4m3};

inline constexpr ModeInfo kModes[] = {
    {.mode = Mode::kAffine,
     .name = "affine",
     .mlx_name = "affine",
     .label = "",
     .kernel_type = "Affine",
     .element = Element::kInteger,
     .bits = kBits,
     .gpu_bits = kBits,
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
     .element = Element::kInteger,
     .bits = kBits,
     .gpu_bits = kBits,
     .group_sizes = kGroupSizes,
     .scale_dtypes = kDtypes,
     .default_bits = 4,
     .default_group_size = 64,
     .stores_biases = true,
     .has_biases = false,
     .bias_of_range = -0.5f},
    {.mode = Mode::kMxfp4,
     .name = "mxfp4",
     .mlx_name = "mxfp4",
     .label = "_mxfp4",
     .kernel_type = "Mxfp4",
     .element = Element::kE2m1,
     .bits = kFp4Bits,
     .gpu_bits = kFp4Bits,
     .group_sizes = kMxGroupSizes,
     .scale_dtypes = kMxScales,
     .default_bits = 4,
     .default_group_size = 32,
     .stores_biases = false,
     .has_biases = false},
    {.mode = Mode::kNvfp4,
     .name = "nvfp4",
     .mlx_name = "nvfp4",
     .label = "_nvfp4",
     .kernel_type = "Nvfp4",
     .element = Element::kE2m1,
     .bits = kFp4Bits,
     .gpu_bits = kFp4Bits,
     .group_sizes = kNvGroupSizes,
     .scale_dtypes = kNvScales,
     .default_bits = 4,
     .default_group_size = 16,
     .stores_biases = false,
     .has_biases = false},
    {.mode = Mode::kMxfp8,
     .name = "mxfp8",
     .mlx_name = "mxfp8",
     .label = "_mxfp8",
     .kernel_type = "Mxfp8",
     .element = Element::kE4m3,
     .bits = kFp8Bits,
     .gpu_bits = kFp8Bits,
     .group_sizes = kMxGroupSizes,
     .scale_dtypes = kMxScales,
     .default_bits = 8,
     .default_group_size = 32,
     .stores_biases = false,
     .has_biases = false},
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

// The mode of this name of ours; null if there is none.
constexpr const ModeInfo* mode_named(std::string_view name) {
  auto found = std::ranges::find(kModes, name, &ModeInfo::name);
  return found == std::end(kModes) ? nullptr : found;
}

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
  // True if the products of codes and 8-bit activations are integers.
  constexpr bool multiplies_integers() const {
    return info().element != Element::kE4m3;
  }
  constexpr bool has_float_codes() const {
    return info().element != Element::kInteger;
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

constexpr bool contains(std::span<const int> values, int value) {
  return std::ranges::find(values, value) != values.end();
}

// True if our CPU kernels support this format; MLX's own operation computes all
// others.
constexpr bool supported(const QuantFormat& format) {
  return contains(format.info().bits, format.bits) &&
         contains(format.info().group_sizes, format.group_size);
}

// True if our kernels support matrices of this format with K columns.
constexpr bool supported(const QuantFormat& format, int K) {
  return supported(format) && K % format.group_size == 0;
}

// The same for our kernels of GPUs. Each takes whole blocks of 32 columns.
constexpr bool supported_by_gpu(const QuantFormat& format) {
  return contains(format.info().gpu_bits, format.bits) && supported(format);
}
constexpr bool supported_by_gpu(const QuantFormat& format, int K) {
  return supported_by_gpu(format) && supported(format, K) && K % 32 == 0;
}

}  // namespace nibble
