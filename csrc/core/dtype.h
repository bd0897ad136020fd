// The floating-point types of activations, scales and biases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble {

enum class Dtype : uint8_t {
  kFloat32,
  kFloat16,
  kBFloat16,
  // Types that only scales have, of one byte:
  kE8m0,  // 2^(byte - 127); 255 is infinite, as in MLX
  kE4m3,  // sign, 4 bits of exponent, 3 of mantissa; 0x7f and 0xff are NaN
};

// The types of activations.
inline constexpr Dtype kDtypes[] = {
    Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

// True for a type that MLX stores as uint8.
constexpr bool is_byte(Dtype dtype) {
  return dtype == Dtype::kE8m0 || dtype == Dtype::kE4m3;
}

constexpr size_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : is_byte(dtype) ? 1 : 2;
}

// The spelling used in kernel names.
constexpr std::string_view short_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "f32";
    case Dtype::kFloat16:
      return "f16";
    case Dtype::kBFloat16:
      return "bf16";
    case Dtype::kE8m0:
      return "e8m0";
    case Dtype::kE4m3:
      return "e4m3";
  }
  return "";
}

// The spelling of the type in the Metal Shading Language. A byte is a float
// that a struct of kernels/format.h decodes.
constexpr std::string_view metal_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float";
    case Dtype::kFloat16:
      return "half";
    case Dtype::kBFloat16:
      return "bfloat";
    case Dtype::kE8m0:
    case Dtype::kE4m3:
      return "unsigned char";
  }
  return "";
}

}  // namespace nibble
