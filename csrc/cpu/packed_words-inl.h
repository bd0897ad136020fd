// How codes of each width lie in a lane of the packed layout (packed-inl.h).
//
// Products read panel words: 32 bits a lane, with 2, 4 or 8 bits a code. Codes
// of 2, 4 and 8 bits are stored as such words. Codes of other widths are bytes
// of a panel word, and 8 panel words are a unit. A unit is stored in planes:
// the low bits of all its codes, then the high bits. A word of a plane of b
// bits has those of 8 / b panel words, each b bits higher than the one before:
//
//     5 bits, low plane    word 0   codes 0 to 3     bits 0 to 3 of each byte
//                                   codes 4 to 7     bits 4 to 7
//                          ..
//                          word 3   codes 24 to 31
//     high plane           word 0   codes 4 i + j    bit i of byte j
//
// So a panel word is two shifts, two masks and an `or`, and no bit is unused.
#pragma once

#include "csrc/cpu/dispatch-inl.h"

namespace nibble::cpu {
namespace {

// The bits of a code in the low plane: 3 = 2 + 1, 5 = 4 + 1, 6 = 4 + 2.
constexpr int low_bits(int bits) {
  return bits == 3 ? 2 : bits == 5 || bits == 6 ? 4 : bits;
}

// True if panel words are stored as they are.
constexpr bool stores_panel_words(int bits) {
  return panel_bits(bits) == bits;
}

// Codes in a panel word, and panel words, codes and stored words in a unit.
template <int kBits>
constexpr int kWordCodes = 32 / panel_bits(kBits);
template <int kBits>
constexpr int kUnitWords = stores_panel_words(kBits) ? 1 : 8;
template <int kBits>
constexpr int kUnitCodes = kUnitWords<kBits> * kWordCodes<kBits>;
template <int kBits>
constexpr int kUnitStored = kUnitCodes<kBits> * kBits / 32;

// Panel words of a number of codes.
template <int kBits>
constexpr int words_of(int codes) {
  return codes / kWordCodes<kBits>;
}

// Panel word number kWord of the units at p.
template <class V, int kBits, int kWord>
[[gnu::always_inline]] inline typename V::I packed_word(const uint8_t* p) {
  auto stored = [&](int word) __attribute__((always_inline)) {
    return V::int_load(reinterpret_cast<const int32_t*>(p) + word * V::kLanes);
  };
  constexpr int kAt = kWord % kUnitWords<kBits>;
  constexpr int kFirst = kWord / kUnitWords<kBits> * kUnitStored<kBits>;
  if constexpr (stores_panel_words(kBits)) {
    return stored(kFirst);
  } else {
    constexpr int kLow = low_bits(kBits), kHigh = kBits - kLow;
    auto low = V::template byte_codes<kLow, kAt % (8 / kLow)>(
        stored(kFirst + kAt * kLow / 8));
    if constexpr (kHigh == 0) {
      return low;
    } else {
      return V::int_or(low,
                       V::template byte_codes<kHigh, kAt % (8 / kHigh), kLow>(
                           stored(kFirst + kLow + kAt * kHigh / 8)));
    }
  }
}

// Calls fn with each panel word of `codes` codes of a strip that lies at p.
template <class V, int kBits, typename Fn>
[[gnu::always_inline]] inline void by_packed_words(const uint8_t* p,
                                                   int codes,
                                                   Fn&& fn) {
  for (int k = 0; k < codes; k += kUnitCodes<kBits>) {
    each_int<kUnitWords<kBits>>([&](auto word) __attribute__((always_inline)) {
      fn(packed_word<V, kBits, decltype(word)::value>(p));
    });
    p += 4 * V::kLanes * kUnitStored<kBits>;
  }
}

// out [stored words] = a unit of the bit stream at p: one lane of them.
template <int kBits>
void pack_unit(const uint8_t* p, uint32_t* out) {
  if constexpr (stores_panel_words(kBits)) {
    __builtin_memcpy(out, p, 4);
  } else {
    constexpr int kLow = low_bits(kBits), kHigh = kBits - kLow;
    constexpr uint32_t kOnes = 0x01010101;
    uint32_t words[8];
    for (int i = 0; i < 4; ++i, p += kBits) {
      spread8<kBits>(p, reinterpret_cast<uint8_t*>(words + 2 * i));
    }
    for (int d = 0; d < kBits; ++d) out[d] = 0;
    for (int i = 0; i < 8; ++i) {
      uint32_t low = words[i] & kOnes * ((1 << kLow) - 1);
      out[i * kLow / 8] |= low << i * kLow % 8;
      if constexpr (kHigh > 0) {
        uint32_t high = words[i] >> kLow & kOnes * ((1 << kHigh) - 1);
        out[kLow + i * kHigh / 8] |= high << i * kHigh % 8;
      }
    }
  }
}

}  // namespace
}  // namespace nibble::cpu
