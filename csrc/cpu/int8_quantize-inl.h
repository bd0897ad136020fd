// Activations as 8-bit integers, in the order of the bytes of codes.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// Returns the bits of a code in the panel. Codes of 2 and 4 bits stay packed,
// all others get a byte each.
constexpr int panel_bits(int bits) {
  return bits == 2 || bits == 4 ? bits : 8;
}

// Returns the place of activation k in a run of 32 / panel_bits. The bytes of
// a word shifted by part * bits hold the codes part, part + parts, ...
constexpr int activation_place(int k, int parts) {
  return k % parts * 4 + k / parts;
}

// Returns bytes 0, 2, 4, 6, 1, 3, 5, 7 of a run of 8: activation_place of two
// parts. Compilers do these shifts for a vector of runs at once.
inline uint64_t evens_first(uint64_t run) {
  uint64_t t = (run ^ run >> 8) & 0x0000ff000000ff00;
  run ^= t ^ t << 8;
  t = (run ^ run >> 16) & 0x00000000ffff0000;
  return run ^ t ^ t << 16;
}

template <class V, int kBits>
void reorder_activations(int8_t* codes, int count) {
  constexpr int kParts = 8 / panel_bits(kBits);
  constexpr int kRun = 4 * kParts;
  for (int i = 0; kParts > 1 && i < count; i += kRun) {
    if constexpr (kParts == 2) {
      uint64_t run;
      __builtin_memcpy(&run, codes + i, kRun);
      run = evens_first(run);
      __builtin_memcpy(codes + i, &run, kRun);
    } else {
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
  // The inverse of a smaller scale would overflow. Infinities and NaN reach the
  // scale.
  constexpr float kLeast = 0x1p-126f;
  float scale = magnitude / 127.0f;
  if (scale < kLeast) scale = kLeast;
  typename V::F factor = V::set1(1.0f / scale);
  for (int k = 0; k < count; k += V::kLanes) {
    V::round_to_bytes(V::mul(V::load(x + k), factor), codes + k);
  }
  return scale;
}

// Returns the sum of a group's codes.
template <class V>
int sum_of_codes(const int8_t* codes, int count) {
  constexpr int8_t kOnes[] = {1, 1, 1, 1};
  typename V::I sums = V::int_zero();
  for (int k = 0; k < count; k += 4 * V::kLanes) {
    typename V::I four =
        V::load_words(reinterpret_cast<const uint8_t*>(codes + k),
                      smaller(count - k, 4 * V::kLanes) / 4);
    sums = V::template dot4<4>(sums, V::broadcast4(kOnes), four);
  }
  int32_t lanes[V::kLanes], sum = 0;
  V::int_store(lanes, sums);
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

// A whole row is rounded before it is read again: a vector cannot be loaded
// soon after its parts were stored one by one.
template <class V>
void quantize_rows(Dtype dtype,
                   QuantFormat format,
                   const void* x,
                   int rows,
                   int K,
                   const QuantizedRows& out) {
  alignas(64) float group[128];
  int size = dtype == Dtype::kFloat32 ? 4 : 2, count = format.group_size;
  const uint8_t* p = static_cast<const uint8_t*>(x);
  int groups = K / count;
  for (int r = 0; r < rows; ++r) {
    int8_t* codes = out.codes + static_cast<size_t>(r) * K;
    float* scales = out.scales + static_cast<size_t>(r) * groups;
    float* sums = out.sums + static_cast<size_t>(r) * groups;
    with_dtype(dtype, [&](auto d) {
      for (int g = 0; g < groups; ++g, p += static_cast<size_t>(count) * size) {
        to_floats<V, decltype(d)::value>(p, count, group);
        scales[g] = quantize_group<V>(group, count, codes + g * count);
      }
    });
    with_codes(format, [&](auto form) {
      using Q = decltype(form);
      reorder_activations<V, Q::kBits>(codes, K);
      for (int g = 0; g < groups; ++g) {
        int sum = sum_of_codes<V>(codes + g * count, count);
        if constexpr (Q::kBiased) {
          sums[g] = scales[g] * static_cast<float>(sum);
        } else if constexpr (Q::kIntegers) {
          sums[g] = static_cast<float>(-Q::kByteOffset * sum);
          scales[g] *= Q::kByteUnit;
        }
      }
    });
  }
}

}  // namespace
}  // namespace nibble::cpu
