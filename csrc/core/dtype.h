// The floating-point types of activations, scales and biases.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nibble {

enum class Dtype : uint8_t { kFloat32, kFloat16, kBFloat16 };

inline constexpr Dtype kDtypes[] = {
    Dtype::kFloat32, Dtype::kFloat16, Dtype::kBFloat16};

constexpr size_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat32 ? 4 : 2;
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
  }
  return "";
}

// The spelling of the type in the Metal Shading Language.
constexpr std::string_view metal_name(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return "float";
    case Dtype::kFloat16:
      return "half";
    case Dtype::kBFloat16:
      return "bfloat";
  }
  return "";
}

}  // namespace nibble
