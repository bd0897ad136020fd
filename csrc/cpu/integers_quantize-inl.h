// Activations as integers of 8 or 16 bits, in the order in which they meet the
// parts of a word of codes. `A` is their form (IntegerForm), here and in the
// files that include this one.
#pragma once

#include "csrc/cpu/dispatch-inl.h"
#include "csrc/cpu/weights-inl.h"

namespace nibble::cpu {
namespace {

// The parts of a word: part number p is the word shifted by p * bits, whose
// bytes (or halves, for activations of 16 bits) are the codes p, p + parts, ...
template <class A, int kBits>
constexpr int kParts = 8 * sizeof(Code<A>) / panel_bits(kBits);

// Activations that meet a part of a word in one lane.
template <class A>
constexpr int kPartCodes = 4 / sizeof(Code<A>);

// Returns the place of activation k in a run of 32 / panel_bits.
template <class A>
constexpr int activation_place(int k, int parts) {
  return k % parts * kPartCodes<A> + k / parts;
}

// Returns bytes 0, 2, 4, 6, 1, 3, 5, 7 of a run of 8: activation_place of two
// parts. Compilers do these shifts for a vector of runs at once.
inline uint64_t evens_first(uint64_t run) {
  uint64_t t = (run ^ run >> 8) & 0x0000ff000000ff00;
  run ^= t ^ t << 8;
  t = (run ^ run >> 16) & 0x00000000ffff0000;
  return run ^ t ^ t << 16;
}

template <class V, class A, int kBits>
void reorder_activations(Code<A>* codes, int count) {
  constexpr int kCount = kParts<A, kBits>;
  constexpr int kRun = kPartCodes<A> * kCount;
  for (int i = 0; kCount > 1 && i < count; i += kRun) {
    if constexpr (sizeof(Code<A>) == 1 && kCount == 2) {
      uint64_t run;
      __builtin_memcpy(&run, codes + i, kRun);
      run = evens_first(run);
      __builtin_memcpy(codes + i, &run, kRun);
    } else {
      Code<A> run[kRun];
#pragma GCC unroll 16
      for (int k = 0; k < kRun; ++k) {
        run[activation_place<A>(k, kCount)] = codes[i + k];
      }
      __builtin_memcpy(codes + i, run, sizeof(run));
    }
  }
}

// codes[0:count] = the activations of a group over scale, rounded to integers.
// Returns scale = max|x| / the largest integer, at least 2^-126.
template <class V, class A>
float quantize_group(const float* x, int count, Code<A>* codes) {
  typename V::I best = V::int_zero();
  for (int i = 0; i < count; i += V::kLanes) {
    best = V::max_magnitude(best, V::load(x + i));
  }
  int32_t lanes[V::kLanes], most = 0;
  V::int_store(lanes, best);
  for (int32_t lane : lanes) most = lane > most ? lane : most;
  float magnitude;
  __builtin_memcpy(&magnitude, &most, sizeof(magnitude));
  // The inverse of a smaller scale would overflow. Infinities and NaN reach the
  // scale.
  constexpr float kLeast = 0x1p-126f;
  // 32639 = 256 * 127 + 127: both bytes of a pair have a sign.
  constexpr float kLargest = sizeof(A) == 1 && kPlanes<A> == 1 ? 127 : 32639;
  float scale = magnitude / kLargest;
  if (scale < kLeast) scale = kLeast;
  typename V::F factor = V::set1(1.0f / scale);
  for (int k = 0; k < count; k += V::kLanes) {
    typename V::F value = V::mul(V::load(x + k), factor);
    if constexpr (kPlanes<A> == 2) {
      V::round_to_pairs(value, codes + k, codes + kRunCodes + k);
    } else {
      V::round_to_integers(value, codes + k);
    }
  }
  return scale;
}

// Returns the sum of a group's codes, of one plane.
template <class V, class A>
int sum_of_codes(const Code<A>* codes, int count) {
  constexpr Code<A> kOnes[] = {1, 1, 1, 1};
  constexpr int kEach = kPartCodes<A>;
  typename V::I sums = V::int_zero(), ones = V::broadcast4(kOnes);
  for (int k = 0; k < count; k += kEach * V::kLanes) {
    typename V::I next =
        V::load_words(reinterpret_cast<const uint8_t*>(codes + k),
                      smaller(count - k, kEach * V::kLanes) / kEach);
    if constexpr (sizeof(Code<A>) == 1) {
      sums = V::template dot4<4>(sums, ones, next);
    } else {
      sums = V::dot2(sums, ones, next);
    }
  }
  int32_t lanes[V::kLanes], sum = 0;
  V::int_store(lanes, sums);
  for (int32_t lane : lanes) sum += lane;
  return sum;
}

// A whole row is rounded before it is read again: a vector cannot be loaded
// soon after its parts were stored one by one.
template <class V, class A>
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
    with_dtype(dtype, [&](auto d) {
      for (int g = 0; g < groups; ++g, p += static_cast<size_t>(count) * size) {
        to_floats<V, decltype(d)::value>(p, count, group);
        out.scales[out.group(r, g)] =
            quantize_group<V, A>(group, count, out.at<A>(r, g * count));
      }
    });
    with_codes(format, [&](auto form) {
      using Q = decltype(form);
      for (int k = 0; k < K; k += kRunCodes) {
        for (int plane = 0; plane < kPlanes<A>; ++plane) {
          reorder_activations<V, A, Q::kBits>(
              out.at<A>(r, k) + plane * kRunCodes, smaller(K - k, kRunCodes));
        }
      }
      for (int g = 0; g < groups; ++g) {
        const Code<A>* codes = out.at<A>(r, g * count);
        int sum = sum_of_codes<V, A>(codes, count);
        if constexpr (kPlanes<A> == 2) {
          sum = 256 * sum + sum_of_codes<V, A>(codes + kRunCodes, count);
        }
        size_t at = out.group(r, g);
        if constexpr (Q::kBiased) {
          out.sums[at] = out.scales[at] * static_cast<float>(sum);
        } else if constexpr (Q::kIntegers) {
          int offset = -Q::kByteOffset * sum;
          __builtin_memcpy(out.sums + at, &offset, sizeof(offset));
          out.scales[at] *= Q::kByteUnit;
        }
      }
    });
  }
}

}  // namespace
}  // namespace nibble::cpu
