// The quantized formats: the argument Q of a kernel is one of these structs.
//
// Q alone knows which arrays a matrix has and what a code stands for:
//
//   Q::kBits, Q::kGroupSize    bits of a code, codes of a group
//   Q::Scale                   type of a scale in memory
//   Q::Arrays                  the arrays of a stack of matrices [N, K]
//   Q::Parameters              scale and bias of a group, or the scale alone
//   Q::affine_at()             those of a group
//   Q::code(), Q::unshift()    value of a code: code(words, i) * unshift(i)
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

// Codes that stand for the integers 0 to 2^bits - 1.
template <typename S, int bits, int group_size>
struct IntegerCodes {
  using Scale = S;
  using Arrays = GroupedArrays<S>;
  using Parameters = float2;
  static constant constexpr int kBits = bits;
  static constant constexpr int kGroupSize = group_size;

  // Code i of a run, still shifted as in its word: too large by 1 / unshift(i).
  static NIBBLE_INLINE float code(const thread uint* words, int i) {
    return float(code_in_place<bits>(words, i));
  }
  static NIBBLE_INLINE constexpr float unshift(int i) {
    return unplace<bits>(i);
  }

  // w_hat of code i. The scale absorbs unshift(): the compiler computes this
  // product once for all words of a run.
  static NIBBLE_INLINE float value(const thread uint* words,
                                   int i,
                                   float2 affine) {
    return fma(code(words, i), affine.x * unshift(i), affine.y);
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

// Codes that stand for floats, the largest of which is `largest`. Decode has
// code(words, i) and scale(S).
template <typename S, int bits, int group_size, typename Decode>
struct FloatCodes {
  using Scale = S;
  using Arrays = GroupedArrays<S>;
  using Parameters = float;
  static constant constexpr int kBits = bits;
  static constant constexpr int kGroupSize = group_size;

  static NIBBLE_INLINE float affine_at(const thread GroupedArrays<S>& arrays,
                                       size_t group) {
    return Decode::scale(arrays.scales[group]);
  }

  static NIBBLE_INLINE float code(const thread uint* words, int i) {
    return Decode::code(words, i);
  }
  static NIBBLE_INLINE constexpr float unshift(int) { return 1.0f; }

  static NIBBLE_INLINE float value(const thread uint* words,
                                   int i,
                                   float scale) {
    return code(words, i) * scale;
  }

  static NIBBLE_INLINE float add(float sum, float scale, float dot, float) {
    return fma(scale, dot, sum);
  }

  static NIBBLE_INLINE float reach(float scale) {
    return abs(scale) * Decode::largest();
  }
};

struct E2m1Codes {
  static NIBBLE_INLINE float code(const thread uint* words, int i) {
    return e2m1_of(words[i / 8], i % 8);
  }
  static NIBBLE_INLINE constexpr float largest() { return 6.0f; }
};

struct E4m3Codes {
  static NIBBLE_INLINE float code(const thread uint* words, int i) {
    return e4m3_of(words[i / 4], i % 4);
  }
  static NIBBLE_INLINE constexpr float largest() { return 448.0f; }
};

struct E2m1TimesE8m0 : E2m1Codes {
  static NIBBLE_INLINE float scale(uchar byte) { return e8m0_of(byte); }
};
struct E2m1TimesE4m3 : E2m1Codes {
  static NIBBLE_INLINE float scale(uchar byte) { return e4m3_of(byte); }
};
struct E4m3TimesE8m0 : E4m3Codes {
  static NIBBLE_INLINE float scale(uchar byte) { return e8m0_of(byte); }
};

template <typename S, int bits, int group_size>
struct Mxfp4 : FloatCodes<S, bits, group_size, E2m1TimesE8m0> {};
template <typename S, int bits, int group_size>
struct Nvfp4 : FloatCodes<S, bits, group_size, E2m1TimesE4m3> {};
template <typename S, int bits, int group_size>
struct Mxfp8 : FloatCodes<S, bits, group_size, E4m3TimesE8m0> {};

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
