// 16-bit floats for compilers that may not know them. Conversions round to
// nearest even, as those of hardware do.
#pragma once

#include <bit>
#include <cstdint>

namespace nibble::cpu {

struct Float16 {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline float to_float(float v) {
  return v;
}

inline float to_float(BFloat16 v) {
  return std::bit_cast<float>(static_cast<uint32_t>(v.bits) << 16);
}

inline float to_float(Float16 v) {
  uint32_t sign = static_cast<uint32_t>(v.bits & 0x8000) << 16;
  uint32_t magnitude = v.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  }
  // Shifted into place, the exponent is 112 too small. A multiplication by
  // 2^112 corrects it and normalises subnormals.
  float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(scaled));
}

inline void from_float(float v, float& out) {
  out = v;
}

inline void from_float(float v, BFloat16& out) {
  uint32_t u = std::bit_cast<uint32_t>(v);
  bool nan = (u & 0x7fffffff) > 0x7f800000;
  out.bits = nan ? static_cast<uint16_t>(u >> 16 | 0x40)
                 : static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline void from_float(float v, Float16& out) {
  uint32_t u = std::bit_cast<uint32_t>(v);
  uint32_t sign = u >> 16 & 0x8000;
  u &= 0x7fffffff;
  if (u >= 0x47800000) {  // 65536 and more, infinity, NaN
    bool nan = u > 0x7f800000;
    out.bits = static_cast<uint16_t>(sign | 0x7c00 | (nan ? 0x200 : 0));
  } else if (u < 0x38800000) {  // subnormal: adding 0.5 aligns and rounds
    float aligned = std::bit_cast<float>(u) + 0.5f;
    out.bits = static_cast<uint16_t>(
        sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000));
  } else {  // round to nearest even; a carry may change the exponent
    uint32_t rounded = u + 0xfff + (u >> 13 & 1);
    out.bits = static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
  }
}

}  // namespace nibble::cpu
