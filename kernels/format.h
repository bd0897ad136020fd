// The quantized formats: the argument Q of a kernel is one of these structs.
//
// Q alone knows which arrays a matrix has and what a code stands for:
//
//   Q::kBits, Q::kGroupSize    bits of a code, codes of a group
//   Q::Scale                   type of a scale in memory
//   Q::Arrays                  the arrays of a stack of matrices [N, K]
//   Q::Parameters              scale and bias of a group, or the scale alone
//   Q::affine_at()             those of a group
//   Q::Codes, Q::kAtOnce       kAtOnce neighbouring codes, which code(i)
//   decodes Q::unshift()               value of code i: code(i) * unshift(i)
//   Q::value()                 w_hat of a code
//   Q::add()                   adds a part of x . w_hat that lies in one group
//   Q::reach()                 the largest |w_hat| of a group
//
// w_hat = scale * value + bias. A new format is one more struct here and one
// more row of kModes in csrc/core/format.h, which names the struct.
#pragma once

#include <metal_stdlib>

#include "kernels/floats.h"
#include "kernels/packing.h"

namespace nibble {

using namespace metal;

// The operand of product `which` of three.
template <typename Pointer>
NIBBLE_INLINE Pointer
one_of(int which, Pointer first, Pointer second, Pointer third) {
  return which == 0 ? first : which == 1 ? second : third;
}

// One scale for each group, and a bias. A format without biases never reads
// `biases`: the host binds another array in its place.
template <typename S>
struct GroupedArrays {
  const device uint* words;  // [N, K * bits / 32]
  const device S* scales;    // [N, K / group_size]
  const device S* biases;    // as `scales`

  // The arrays from word `word` and group `group` on.
  NIBBLE_INLINE GroupedArrays from(size_t word, size_t group) const thread {
    return {words + word, scales + group, biases + group};
  }

  // Chooses pointer by pointer: a choice of structs would put them in memory.
  static NIBBLE_INLINE GroupedArrays choose(int which,
                                            GroupedArrays a,
                                            GroupedArrays b,
                                            GroupedArrays c) {
    return {one_of(which, a.words, b.words, c.words),
            one_of(which, a.scales, b.scales, c.scales),
            one_of(which, a.biases, b.biases, c.biases)};
  }
};

// Codes of a run from code `first` on.
template <int bits>
struct IntegersOfRun {
  const thread uint* words;
  int first;

  IntegersOfRun() = default;
  NIBBLE_INLINE IntegersOfRun(const thread uint* words_, int first_)
      : words(words_), first(first_) {}

  // Code i of them, still shifted as in its word: too large by
  // 1 / unshift(first + i).
  NIBBLE_INLINE float code(int i) const thread {
    return float(code_in_place<bits>(words, first + i));
  }
};

// Codes that stand for the integers 0 to 2^bits - 1.
template <typename S, int bits, int group_size>
struct IntegerCodes {
  using Scale = S;
  using Arrays = GroupedArrays<S>;
  using Parameters = float2;
  using Codes = IntegersOfRun<bits>;
  static constant constexpr int kBits = bits;
  static constant constexpr int kGroupSize = group_size;
  static constant constexpr int kAtOnce = 4;

  // The factor of code i of a run.
  static NIBBLE_INLINE constexpr float unshift(int i) {
    return unplace<bits>(i);
  }

  // w_hat of code i of `codes`. The scale absorbs unshift(): the compiler
  // computes this product once for all words of a run.
  static NIBBLE_INLINE float value(const thread Codes& codes,
                                   int i,
                                   float2 affine) {
    return fma(codes.code(i), affine.x * unshift(codes.first + i), affine.y);
  }

  // sum + x . w_hat of codes of one group; `dot` is their x . value, and
  // `x_sum` the sum of their x.
  static NIBBLE_INLINE float add(float sum,
                                 float2 affine,
                                 float dot,
                                 float x_sum) {
    return fma(affine.y, x_sum, fma(affine.x, dot, sum));
  }

  // The largest |w_hat| that a group can have: at the first or the last code.
  static NIBBLE_INLINE float reach(float2 affine) {
    constexpr float kLast = float((1 << bits) - 1);
    return max(abs(affine.y), abs(fma(affine.x, kLast, affine.y)));
  }
};

// Codes that stand for floats. C decodes `at_once` of them.
template <typename S, int bits, int group_size, typename C, int at_once>
struct FloatCodes {
  using Scale = S;
  using Arrays = GroupedArrays<S>;
  using Parameters = float;
  using Codes = C;
  static constant constexpr int kBits = bits;
  static constant constexpr int kGroupSize = group_size;
  static constant constexpr int kAtOnce = at_once;

  static NIBBLE_INLINE constexpr float unshift(int) { return 1.0f; }

  static NIBBLE_INLINE float value(const thread Codes& codes,
                                   int i,
                                   float scale) {
    return codes.code(i) * scale;
  }

  static NIBBLE_INLINE float add(float sum, float scale, float dot, float) {
    return fma(scale, dot, sum);
  }

  static NIBBLE_INLINE float reach(float scale) {
    constexpr float kLargest = bits == 4 ? 6.0f : 448.0f;
    return abs(scale) * kLargest;
  }
};

template <typename S, int bits, int group_size>
struct Mxfp4 : FloatCodes<S, bits, group_size, E2m1Word, 8> {
  static NIBBLE_INLINE float affine_at(const thread GroupedArrays<S>& arrays,
                                       size_t group) {
    return e8m0_of(arrays.scales[group]);
  }
};

template <typename S, int bits, int group_size>
struct Nvfp4 : FloatCodes<S, bits, group_size, E2m1Word, 8> {
  static NIBBLE_INLINE float affine_at(const thread GroupedArrays<S>& arrays,
                                       size_t group) {
    return e4m3_of(arrays.scales[group]);
  }
};

template <typename S, int bits, int group_size>
struct Mxfp8 : FloatCodes<S, bits, group_size, E4m3Word, 4> {
  static NIBBLE_INLINE float affine_at(const thread GroupedArrays<S>& arrays,
                                       size_t group) {
    return e8m0_of(arrays.scales[group]);
  }
};

// A scale and a bias for each group.
template <typename S, int bits, int group_size>
struct Affine : IntegerCodes<S, bits, group_size> {
  static NIBBLE_INLINE float2 affine_at(const thread GroupedArrays<S>& arrays,
                                        size_t group) {
    return float2(float(arrays.scales[group]), float(arrays.biases[group]));
  }
};

// A scale alone: a code stands for code - 2^(bits - 1).
template <typename S, int bits, int group_size>
struct Symmetric : IntegerCodes<S, bits, group_size> {
  static NIBBLE_INLINE float2 affine_at(const thread GroupedArrays<S>& arrays,
                                        size_t group) {
    const float scale = float(arrays.scales[group]);
    return float2(scale, scale * -float(1 << (bits - 1)));
  }
};

}  // namespace nibble
