#include "csrc/cpu/cache_rows.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "csrc/cpu/isa.h"

namespace nibble::cpu {
namespace {

constexpr int64_t kWordBytes = 4;

// Returns true if no exponent has all bits of infinity set.
template <typename Word>
bool has_none(const void* p, int count, Word infinity) {
  const Word* words = static_cast<const Word*>(p);
  Word bad = 0;
  for (int i = 0; i < count; ++i) {
    bad |= (words[i] & infinity) == infinity;
  }
  return bad == 0;
}

}  // namespace

CacheRows rows_of(const CacheShape& shape,
                  const CacheOperand& o,
                  int width,
                  int batch,
                  int head) {
  int64_t size = int64_t(size_of(shape.dtype));
  auto first = [&](const void* data, const int64_t* strides, int64_t each) {
    return static_cast<const uint8_t*>(data) +
           (batch * strides[0] + head * strides[1]) * each;
  };
  CacheRows rows{};
  rows.format = shape;
  rows.width = width;
  if (!shape.is_quantized()) {
    rows.data = first(o.data, shape.strides, size);
    rows.stride = shape.strides[2] * size;
    return rows;
  }
  rows.data = first(o.data, shape.strides, kWordBytes);
  rows.stride = shape.strides[2] * kWordBytes;
  rows.scales = first(o.scales, shape.scale_strides, size);
  rows.biases = first(o.biases, shape.bias_strides, size);
  rows.scale_stride = shape.scale_strides[2] * size;
  rows.bias_stride = shape.bias_strides[2] * size;
  return rows;
}

bool all_finite(Dtype dtype, const void* p, int count) {
  switch (dtype) {
    case Dtype::kFloat32:
      return has_none<uint32_t>(p, count, 0x7f800000);
    case Dtype::kFloat16:
      return has_none<uint16_t>(p, count, 0x7c00);
    case Dtype::kBFloat16:
      return has_none<uint16_t>(p, count, 0x7f80);
    case Dtype::kE8m0:
    case Dtype::kE4m3:
      break;  // no cache has these
  }
  return true;
}

namespace {

// Returns true if no value of a row can be infinite or NaN.
bool row_is_finite(const CacheRows& rows, int64_t row) {
  Dtype dtype = rows.format.dtype;
  const uint8_t* data = rows.data + row * rows.stride;
  if (!rows.format.is_quantized()) return all_finite(dtype, data, rows.width);
  int groups = rows.width / rows.format.group_size;
  float largest = static_cast<float>((1 << rows.format.bits) - 1);
  std::vector<float> scales(groups + kMaxLanes), biases(groups + kMaxLanes);
  const LayerKernels& kernels = isa().layers;
  kernels.widen(
      dtype, rows.scales + row * rows.scale_stride, groups, scales.data());
  kernels.widen(
      dtype, rows.biases + row * rows.bias_stride, groups, biases.data());
  for (int g = 0; g < groups; ++g) {
    float most = std::fabs(scales[g]) * largest + std::fabs(biases[g]);
    if (!std::isfinite(most)) return false;
  }
  return true;
}

}  // namespace

bool may_leave_out(const Attention& p, const AttentionOperands& o) {
  for (int b = 0; b < p.B; ++b) {
    for (int h = 0; h < p.kv_heads; ++h) {
      CacheRows values = rows_of(p.values, o.values, p.Dv, b, h);
      for (int s = std::max(0, p.S - p.L + 1); s < p.S; ++s) {
        if (!row_is_finite(values, s)) return false;
      }
    }
  }
  return true;
}

}  // namespace nibble::cpu
