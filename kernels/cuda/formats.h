// The formats of packed matrices: how a block of codes becomes numbers.
//
// A lane asks for the scale of a block early, as 32 bits, and keeps it until
// the codes are there: hold() and scaling(). A row has its groups from `groups`
// on. Then there are two ways on:
//
//   unpack(), add()  a product of codes, exact, whose sum is scaled in float
//   decode()         eight numbers w_hat, rounded to the type T
#pragma once

#include "kernels/cuda/codes.h"

namespace nibble {

// scale * q + bias, with q an unsigned integer.
template <int bits, int group>
struct Affine {
  using Scale = uint16;
  static constexpr int kBits = bits;
  static constexpr int kGroup = group;
  // Codes of a block: a group, or half of one of 128.
  static constexpr int kBlock = group < 64 ? group : 64;
  static constexpr bool kHasBiases = true;

  template <typename T>
  struct In {
    using Place = typename T::template Place<bits>;
    using Scaling = float2;  // of codes in their place, and of ones

    static NIBBLE_DEVICE uint32 hold(const Scale* scales,
                                     const Scale* biases,
                                     int groups,
                                     int block) {
      return at(scales, biases, groups + block * kBlock / group);
    }
    static NIBBLE_DEVICE uint32 at(const Scale* scales,
                                   const Scale* biases,
                                   size_t i) {
      return __ldg(scales + i) | __ldg(biases + i) << 16;
    }
    static NIBBLE_DEVICE Scaling scaling(uint32 held, int) {
      const float scale = T::to_float(held & 0xffff);
      const float bias = T::to_float(held >> 16);
      return make_float2(scale * Place::kScale,
                         __fmaf_rn(scale, -Place::kOffset, bias));
    }
    template <int kWords>
    static NIBBLE_DEVICE void unpack(uint32 (&pairs)[4],
                                     const uint32 (&words)[kWords],
                                     int chunk,
                                     const Scaling&) {
      nibble::unpack<T, Place, bits>(pairs, words, chunk);
    }
    static NIBBLE_DEVICE float add(float to,
                                   const Scaling& s,
                                   float product,
                                   float sum) {
      return __fmaf_rn(s.x, product, __fmaf_rn(s.y, sum, to));
    }
    static NIBBLE_DEVICE void decode(uint32 (&pairs)[4],
                                     const uint32 (&words)[2],
                                     uint32 held) {
      using Exact = typename T::template Exact<bits>;
      nibble::unpack<T, Exact, bits>(pairs, words, 0);
      const uint32 scale = (held & 0xffff) * 0x00010001u;
      const uint32 bias = (held >> 16) * 0x00010001u;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (Exact::kAround != 0) {
          // The bits around a code are the number that is added to it.
          pairs[i] = T::fma(pairs[i], T::kOnes, Exact::kAround | 0x80008000);
        }
        pairs[i] = T::fma(pairs[i], scale, bias);
      }
    }
  };
};

// The parts that all modes of floats share.
template <int bits, int group, int block>
struct Floats {
  using Scale = uint8;
  static constexpr int kBits = bits;
  static constexpr int kGroup = group;
  static constexpr int kBlock = block;
  static constexpr bool kHasBiases = false;
};

// scale * q with a power of two as scale (E8M0), and q a float: E2M1 of 4 bits
// or E4M3 of 8.
template <int bits, int group>
struct Mx : Floats<bits, group, group> {
  template <typename T>
  struct In {
    using Scaling = float;
    // 1 as a code, in T.
    static constexpr int kSmall = (bits == 4 ? 1 : 7) - T::kBias;

    static NIBBLE_DEVICE uint32 hold(const uint8* scales,
                                     const uint8*,
                                     int groups,
                                     int block) {
      return at(scales, nullptr, groups + block);
    }
    static NIBBLE_DEVICE uint32 at(const uint8* scales,
                                   const uint8*,
                                   size_t i) {
      return __ldg(scales + i);
    }
    // 0 is 2^-127, a subnormal number. 255 is infinite, as in MLX.
    static NIBBLE_DEVICE float scaling(uint32 held, int) {
      return __uint_as_float(held == 0 ? 0x00400000 : held << 23);
    }
    // In bfloat16, codes are made as large as they are: products of such small
    // numbers would be subnormal.
    template <int kWords>
    static NIBBLE_DEVICE void unpack(uint32 (&pairs)[4],
                                     const uint32 (&words)[kWords],
                                     int chunk,
                                     float) {
      copy(pairs, words, chunk);
      if constexpr (T::kWide) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          pairs[i] = times<T>(pairs[i], power<T>(-kSmall));
        }
      }
    }
    static NIBBLE_DEVICE float add(float to,
                                   float scale,
                                   float product,
                                   float) {
      if constexpr (T::kWide) {
        return __fmaf_rn(scale, product, to);
      } else {
        return __fmaf_rn(scale, product * (1 << -kSmall), to);
      }
    }
    static NIBBLE_DEVICE void decode(uint32 (&pairs)[4],
                                     const uint32 (&words)[2],
                                     uint32 held) {
      const float scale = scaling(held, 0);
      unpack(pairs, words, 0, scale);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (T::kWide) {
          const uint32 exponent = held == 0 ? 0x0040 : held << 7;
          pairs[i] = times<T>(pairs[i], exponent * 0x00010001u);
          continue;
        }
        const float low = add(0, scale, T::to_float(pairs[i] & 0xffff), 0);
        const float high = add(0, scale, T::to_float(pairs[i] >> 16), 0);
        pairs[i] = T::from_float(low) | uint32(T::from_float(high)) << 16;
      }
    }

   private:
    template <int kWords>
    static NIBBLE_DEVICE void copy(uint32 (&pairs)[4],
                                   const uint32 (&words)[kWords],
                                   int chunk) {
      if constexpr (bits == 4) {
        unpack_e2m1<T>(pairs, words[chunk]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          pairs[i] = e4m3<T>(__byte_perm(
              words[2 * chunk + i / 2], 0, i % 2 ? 0x3424 : 0x1404));
        }
      }
    }
  };
};

template <int bits, int group>
using Mxfp4 = Mx<bits, group>;
template <int bits, int group>
using Mxfp8 = Mx<bits, group>;

// scale * q, E4M3 and E2M1, in groups of 16. The product has five significant
// bits, so that T has it exactly: codes are scaled before they are multiplied.
// A block has four groups, one for each of four lanes.
template <int bits, int group>
struct Nvfp4 : Floats<bits, group, 4 * group> {
  template <typename T>
  struct In {
    using Scaling = uint32;  // a pair
    // A code and a scale of 1, in T. The largest scale, 448, must fit.
    static constexpr int kSmallCode = 1 - T::kBias;
    static constexpr int kSmallScale = 7 - T::kBias;
    static constexpr int kScale = T::kBias - 8;

    static NIBBLE_DEVICE uint32 hold(const uint8* scales,
                                     const uint8*,
                                     int groups,
                                     int block) {
      return __ldg(
          reinterpret_cast<const uint32*>(scales + groups + block * 4));
    }
    static NIBBLE_DEVICE uint32 at(const uint8* scales,
                                   const uint8*,
                                   size_t i) {
      return __ldg(scales + i);
    }
    static NIBBLE_DEVICE uint32 scaling(uint32 held, int t) {
      // 2^(kScale - kSmallScale) is no number of T.
      constexpr int kHalf = (kScale - kSmallScale) / 2;
      const uint32 scale = e4m3<T>(__byte_perm(held, 0, 0x0404 | t * 0x1010));
      return times<T>(times<T>(scale, power<T>(kHalf)),
                      power<T>(kScale - kSmallScale - kHalf));
    }
    template <int kWords>
    static NIBBLE_DEVICE void unpack(uint32 (&pairs)[4],
                                     const uint32 (&words)[kWords],
                                     int chunk,
                                     uint32 scale) {
      unpack_e2m1<T>(pairs, words[chunk]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = times<T>(pairs[i], scale);
      }
    }
    static NIBBLE_DEVICE float add(float to, uint32, float product, float) {
      return __fmaf_rn(product, 1 << -(kScale + kSmallCode), to);
    }
    static NIBBLE_DEVICE void decode(uint32 (&pairs)[4],
                                     const uint32 (&words)[2],
                                     uint32 held) {
      unpack(pairs, words, 0, scaling(held, 0));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        pairs[i] = times<T>(pairs[i], power<T>(-(kScale + kSmallCode)));
      }
    }
  };
};

}  // namespace nibble
