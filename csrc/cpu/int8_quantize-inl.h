// Activations as 8-bit integers, in the order in which bytes of codes meet
// them.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Bits of a code in the panel: those that fill bytes stay packed, the others
// get a byte each.
constexpr int panel_bits(int bits) {
  return bits == 2 || bits == 4 ? bits : 8;
}

// Where activation k of a run of 32 / panel_bits goes: the byte lanes of word
// shifted by part * bits hold codes part, part + parts, ...
constexpr int activation_place(int k, int parts) {
  return k % parts * 4 + k / parts;
}

template <class V, int kBits>
void reorder_activations(int8_t* codes, int count) {
  constexpr int kParts = 8 / panel_bits(kBits);
  if constexpr (kParts > 1) {
    constexpr int kRun = 4 * kParts;
    for (int i = 0; i < count; i += kRun) {
      int8_t run[kRun];
      for (int k = 0; k < kRun; ++k) {
        run[activation_place(k, kParts)] = codes[i + k];
      }
      for (int k = 0; k < kRun; ++k) codes[i + k] = run[k];
    }
  }
}

// codes[0:count] = the activations of a group over scale, rounded to -127..127.
// Returns scale = max|x| / 127, at least 2^-126.
template <class V>
float quantize_group(const float* x, int count, int8_t* codes) {
  typename V::I best = V::int_zero();
  for (int k = 0; k < count; k += V::kLanes) {
    best = V::max_magnitude(best, V::load(x + k));
  }
  int32_t lanes[V::kLanes], most = 0;
  V::int_store(lanes, best);
  for (int32_t lane : lanes) most = lane > most ? lane : most;
  float magnitude;
  __builtin_memcpy(&magnitude, &most, sizeof(magnitude));
  // Below, the inverse would overflow. Infinities and NaN reach the scale.
  constexpr float kLeast = 0x1p-126f;
  float scale = magnitude / 127.0f;
  if (scale < kLeast) scale = kLeast;
  typename V::F factor = V::set1(1.0f / scale);
  for (int k = 0; k < count; k += V::kLanes) {
    V::round_to_bytes(V::mul(V::load(x + k), factor), codes + k);
  }
  return scale;
}

template <class V>
void quantize_rows(Dtype dtype,
                   QuantFormat format,
                   const void* x,
                   int rows,
                   int K,
                   const QuantizedRows& out) {
  alignas(64) float group[128];
  int size = dtype == Dtype::kFloat32 ? 4 : 2;
  const uint8_t* p = static_cast<const uint8_t*>(x);
  size_t groups = static_cast<size_t>(rows) * (K / format.group_size);
  for (size_t g = 0; g < groups; ++g) {
    int8_t* codes = out.codes + g * format.group_size;
    with_dtype(dtype, [&](auto d) {
      to_floats<V, decltype(d)::value>(p, format.group_size, group);
    });
    float scale = quantize_group<V>(group, format.group_size, codes);
    int sum = 0;
    for (int k = 0; k < format.group_size; ++k) sum += codes[k];
    out.scales[g] = scale;
    out.sums[g] = scale * static_cast<float>(sum);
    p += static_cast<size_t>(format.group_size) * size;
    with_bits(format.bits, [&](auto bits) {
      reorder_activations<V, decltype(bits)::value>(codes, format.group_size);
    });
  }
}

}  // namespace
}  // namespace nibble::cpu
