// The codes of a format as a type. Decoding asks it for the width and for the
// numbers; a weight is scale * number, plus a bias if the codes have one.
// with_codes() of dispatch-inl.h gives the type of a format.
#pragma once

#include <cstdint>

#if defined(__BMI2__)
#include <immintrin.h>
#endif

namespace nibble::cpu {
namespace {

// Returns the bits of a code in the words that meet activations. Codes of 2 and
// 4 bits stay packed, all others get a byte each.
constexpr int panel_bits(int bits) {
  return bits == 2 || bits == 4 ? bits : 8;
}

template <typename Word>
uint64_t load_word(const uint8_t* p) {
  Word word;
  __builtin_memcpy(&word, p, sizeof(word));
  return word;
}

// Returns the kBits bytes of 8 codes at p. A copy of 3, 5 or 6 bytes is stored
// in parts, for which the load of all waits: one row of int8 with 5 bits
// took 1.8 ms of a core of a Xeon, and takes 0.35 (512 x 4096, not packed).
template <int kBits>
uint64_t load_codes(const uint8_t* p) {
  if constexpr (kBits == 8) {
    return load_word<uint64_t>(p);
  } else if constexpr (kBits == 6) {
    return load_word<uint32_t>(p) | load_word<uint16_t>(p + 4) << 32;
  } else if constexpr (kBits > 3) {
    return load_word<uint32_t>(p) |
           (kBits == 5 ? load_word<uint8_t>(p + 4) << 32 : 0);
  } else if constexpr (kBits > 1) {
    return load_word<uint16_t>(p) |
           (kBits == 3 ? load_word<uint8_t>(p + 2) << 16 : 0);
  } else {
    return p[0];
  }
}

// out[0:8] = the 8 codes in kBits bytes at p.
template <int kBits>
void spread8(const uint8_t* p, uint8_t* out) {
  uint64_t codes = load_codes<kBits>(p);
#if defined(__BMI2__)
  codes = _pdep_u64(codes, 0x0101010101010101 * ((1 << kBits) - 1));
  __builtin_memcpy(out, &codes, sizeof(codes));
#else
  for (int i = 0; i < 8; ++i) {
    out[i] = codes >> (i * kBits) & ((1 << kBits) - 1);
  }
#endif
}

// The reverse: out[0:kBits] = the 8 codes at p.
template <int kBits>
void join8(const uint8_t* p, uint8_t* out) {
#if defined(__BMI2__)
  uint64_t codes = load_word<uint64_t>(p);
  codes = _pext_u64(codes, 0x0101010101010101 * ((1 << kBits) - 1));
#else
  uint64_t codes = 0;
  for (int i = 0; i < 8; ++i) codes |= uint64_t{p[i]} << (i * kBits);
#endif
  __builtin_memcpy(out, &codes, kBits);
}

// Codes that are unsigned integers.
template <int kWidth>
struct IntegerCodes {
  static constexpr int kBits = kWidth;
  static constexpr bool kBiased = true;
  // Every group has a multiple of this number of codes.
  static constexpr int kUnit = 32;

  // The numbers of a vector of codes; V is a SIMD facade.
  template <class V>
  static typename V::F numbers(typename V::I codes) {
    return V::to_float(codes);
  }

  // Integer products read codes as unsigned integers of kByteBits, which are
  // kByteOffset + number / kByteUnit.
  static constexpr bool kIntegers = true;
  static constexpr int kByteBits = kWidth;
  static constexpr int kByteOffset = 0;
  static constexpr float kByteUnit = 1;

  template <class V>
  static typename V::I bytes(typename V::I codes) {
    return codes;
  }

  // Part number kPart of words that store kStored bits a code: one code in each
  // half of a word, to meet activations of 16 bits.
  template <class V, int kStored, int kPart>
  static typename V::I halves(typename V::I words) {
    return V::template half_codes<kStored, kPart>(words);
  }
};

// Floats of 4 bits: sign, 2 bits of exponent, 1 of mantissa. Twice such a
// number is an integer from -12 to 12.
struct E2m1Codes {
  static constexpr int kBits = 4;
  static constexpr bool kBiased = false;
  static constexpr int kUnit = 16;

  template <class V>
  static typename V::F numbers(typename V::I codes) {
    return V::e2m1(codes);
  }

  static constexpr bool kIntegers = true;
  static constexpr int kByteBits = 5;
  static constexpr int kByteOffset = 12;
  static constexpr float kByteUnit = 0.5f;

  template <class V>
  static typename V::I bytes(typename V::I codes) {
    static constexpr unsigned char kTable[16] = {
        12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
    return V::look_up(kTable, codes);
  }

  template <class V, int kStored, int kPart>
  static typename V::I halves(typename V::I words) {
    return V::template byte_halves<kPart / 2>(
        bytes<V>(V::template byte_codes<kStored, kPart % 2>(words)));
  }
};

// Floats of 8 bits: sign, 4 bits of exponent, 3 of mantissa. kRegular: no code
// is NaN and no scale is huge, which makes decoding faster.
template <bool kRegular = false>
struct E4m3Codes {
  static constexpr bool kIsRegular = kRegular;
  static constexpr int kBits = 8;
  static constexpr bool kBiased = false;
  static constexpr int kUnit = 32;

  template <class V>
  static typename V::F numbers(typename V::I codes) {
    return V::e4m3(codes);
  }

  static constexpr bool kIntegers = false;
};

// scale * number + bias; V is a SIMD facade.
template <class V, class Q>
[[gnu::always_inline]] inline typename V::F weigh(typename V::F number,
                                                  typename V::F scale,
                                                  typename V::F bias) {
  if constexpr (Q::kBiased) {
    return V::fma(number, scale, bias);
  } else {
    return V::mul(number, scale);
  }
}

}  // namespace
}  // namespace nibble::cpu
