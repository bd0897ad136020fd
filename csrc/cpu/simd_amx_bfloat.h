// AMX with tiles of bfloat16, and AVX-512 with float16: how codes that are
// floats become right tiles.
//
// A row of a right tile has two bfloat16 in each lane, and a lane is a weight
// row. The two are codes number k and k + 16 / bits of the lane's word.
#pragma once

#include "csrc/cpu/simd_amx.h"

namespace nibble::cpu {
namespace {

// Numbers of 16 bits, for the codes of E2M1 and their repetition.
struct alignas(64) Table {
  int16_t numbers[32];
};

// 0.5 is `half`, exponents begin with bit `place`, and `mantissa` is the
// first bit below. -0 becomes 0.
constexpr Table e2m1_table(int half, int place, int mantissa) {
  Table table{};
  for (int code = 0; code < 32; ++code) {
    int e = code >> 1 & 3, m = code & 1;
    int number = half + (e << place) + m * mantissa;
    if (e == 0) number = m ? half : 0;
    bool minus = (code & 8) && number;
    table.numbers[code] = static_cast<int16_t>(number | (minus ? 0x8000 : 0));
  }
  return table;
}

struct AmxBfloat : Amx {
  // Numbers of tiles are those of Amx.
  template <int kLeft, int kRight>
  static void load_sums(const float* p, size_t stride) {
    if constexpr (kLeft == 0 && kRight == 0) _tile_loadd(0, p, stride);
    if constexpr (kLeft == 0 && kRight == 1) _tile_loadd(1, p, stride);
    if constexpr (kLeft == 1 && kRight == 0) _tile_loadd(2, p, stride);
    if constexpr (kLeft == 1 && kRight == 1) _tile_loadd(3, p, stride);
  }
  // sums [kLeft, kRight] += the products of the two tiles. Subnormal numbers
  // are zero, also as results of each step.
  template <int kLeft, int kRight>
  static void add_bfloats() {
    if constexpr (kLeft == 0 && kRight == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kLeft == 0 && kRight == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kLeft == 1 && kRight == 0) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kLeft == 1 && kRight == 1) _tile_dpbf16ps(3, 5, 7);
  }

  // Activations in the order of the codes in right tiles.
  template <int kBits>
  static F to_tile_order(F v) {
    // Lane i has place i / 2 of a word, and its second half if i is odd.
    constexpr int kHalf = 16 / kBits;
    I lanes =
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    I odd = _mm512_and_si512(lanes, _mm512_set1_epi32(1));
    I word = _mm512_andnot_si512(_mm512_set1_epi32(2 * kHalf - 1), lanes);
    I place = _mm512_and_si512(_mm512_srli_epi32(lanes, 1),
                               _mm512_set1_epi32(kHalf - 1));
    I order = _mm512_add_epi32(
        word,
        _mm512_add_epi32(place,
                         _mm512_mullo_epi32(odd, _mm512_set1_epi32(kHalf))));
    return _mm512_permutexvar_ps(order, v);
  }

  // 1 + code number kPart of each word / 2^kBits.
  template <int kBits, int kPart>
  static F fraction(I words) {
    constexpr int kShift = 23 - kBits - kBits * kPart;
    if constexpr (kShift > 0) words = _mm512_slli_epi32(words, kShift);
    if constexpr (kShift < 0) words = _mm512_srli_epi32(words, -kShift);
    constexpr int kMantissa = ((1 << kBits) - 1) << (23 - kBits);
    return _mm512_castsi512_ps(and_or(words, kMantissa, one_bits()));
  }

  static F abs(F v) { return _mm512_abs_ps(v); }

  // True if all numbers v >= 0 are zero or between 2^-60 and 2^60: their
  // products with x are far from the ends of float's range.
  static bool are_ordinary(F v) {
    __mmask16 large =
        _mm512_cmp_ps_mask(v, _mm512_set1_ps(0x1p-60f), _CMP_GE_OQ);
    __mmask16 small =
        _mm512_cmp_ps_mask(v, _mm512_set1_ps(0x1p60f), _CMP_LE_OQ);
    __mmask16 zero = _mm512_cmp_ps_mask(v, zero_float(), _CMP_EQ_OQ);
    return ((large & small) | zero) == 0xffff;
  }

  // first[lane] = bfloat16 of a and b, each rounded to the nearest (away from
  // zero in the middle). With two planes, `second` has what is missing, cut
  // off after 8 bits.
  template <int kPlanes>
  static void store_pairs(F a, F b, int32_t* first, int32_t* second) {
    I near_a = rounded(a), near_b = rounded(b);
    int_store(first, upper_halves(near_a, near_b));
    if constexpr (kPlanes == 2) {
      int_store(second,
                upper_halves(_mm512_castps_si512(rest(a, near_a)),
                             _mm512_castps_si512(rest(b, near_b))));
    }
  }

  // The scales of a group, one for each lane.
  using Scales = __m128i;
  static Scales load_scales(const uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }

  // The lanes whose scale E8M0 is not between two.
  static uint32_t outside(Scales s, int least, int most) {
    return _mm_cmpgt_epu8_mask(
        _mm_sub_epi8(s, _mm_set1_epi8(static_cast<char>(least))),
        _mm_set1_epi8(static_cast<char>(most - least)));
  }
  static uint32_t equal(Scales s, int value) {
    return _mm_cmpeq_epi8_mask(s, _mm_set1_epi8(static_cast<char>(value)));
  }
  // The lanes whose scale E4M3 is NaN.
  static uint32_t nan_e4m3(Scales s) {
    return equal(_mm_or_si128(s, _mm_set1_epi8(static_cast<char>(0x80))), 255);
  }
  // The lanes with words that have some of these bits.
  static uint32_t any_of(I words, int bits) {
    return _mm512_test_epi32_mask(words, _mm512_set1_epi32(bits));
  }

  // The exponent of a lane's scale E8M0, less `from` or taken from it, where
  // bfloat16 has it.
  static I exponents_over(Scales s, int from) {
    return twice(
        _mm512_sub_epi32(_mm512_cvtepu8_epi32(s), _mm512_set1_epi32(from)));
  }
  static I exponents_below(Scales s, int from) {
    return twice(
        _mm512_sub_epi32(_mm512_set1_epi32(from), _mm512_cvtepu8_epi32(s)));
  }

  // Scales E4M3 as float16, over 2^8. NaN becomes a number.
  static I halves_of_scales(Scales s) {
    I spread = _mm512_shuffle_epi8(
        _mm512_cvtepu8_epi32(s),
        _mm512_broadcast_i32x4(_mm_setr_epi8(
            -1, 0, -1, 0, -1, 4, -1, 4, -1, 8, -1, 8, -1, 12, -1, 12)));
    return _mm512_and_si512(_mm512_srai_epi16(spread, 1),
                            _mm512_set1_epi16(static_cast<short>(0xbfff)));
  }

  // Part number kPart of words of E2M1, times 2^(s - 127), where `below` is
  // exponents_below(s, kMostE2m1). Zero stays zero.
  static constexpr int kMostE2m1 = 253;
  template <int kPart>
  static I scaled_e2m1(I words, I below) {
    // The exponents of 0.5 to 6, and kMostE2m1 - 127 more.
    constexpr int kHalf = 126 + kMostE2m1 - 127;
    static constexpr Table kTable = e2m1_table(kHalf << 7, 7, 0x40);
    return _mm512_subs_epu16(of_table<kPart>(words, kTable), below);
  }

  // Part number kPart of words of E2M1, times scales and 2^-112. `halves` are
  // those of the scales.
  template <int kPart>
  static I scaled_e2m1_of_halves(I words, I halves) {
    // 0.5 is 2^(14 - 15) in float16, and 2^8 belongs to the scales.
    static constexpr Table kTable = e2m1_table(22 << 10, 10, 0x200);
    I numbers = of_table<kPart>(words, kTable);
    I products = _mm512_castph_si512(_mm512_mul_ph(
        _mm512_castsi512_ph(numbers), _mm512_castsi512_ph(halves)));
    return _mm512_and_si512(_mm512_srai_epi16(products, 3),
                            _mm512_set1_epi16(static_cast<short>(0x8fff)));
  }

  // Returns a number for each byte that is above kMostOrdinary if one of them
  // is zero, subnormal or NaN in E4M3.
  static constexpr int kMostOrdinary = 0xec;
  static I e4m3_class(I seen, I words) {
    I twice = _mm512_add_epi8(words, words);
    return _mm512_max_epu8(seen,
                           _mm512_sub_epi8(twice, _mm512_set1_epi8(0x10)));
  }
  static bool are_ordinary(I seen) {
    return _mm512_cmpgt_epu8_mask(
               seen, _mm512_set1_epi8(static_cast<char>(kMostOrdinary))) == 0;
  }
  static uint32_t nan_codes(I words) {
    I most = _mm512_set1_epi8(static_cast<char>(0xff));
    I signless =
        _mm512_or_si512(words, _mm512_set1_epi8(static_cast<char>(0x80)));
    return _mm512_cmpeq_epi8_mask(signless, most) != 0;
  }

  // Part number kPart of words of E4M3, times 2^(s - 127), where `over` is
  // exponents_over(s, 7). kOrdinary: no zero, subnormal number or NaN.
  template <int kPart, bool kOrdinary>
  static I scaled_e4m3(I words, I over) {
    if constexpr (kPart == 0) words = halves_from<-8>(words);
    I number = _mm512_srai_epi16(words, 4);
    I sign_and_number = _mm512_set1_epi16(static_cast<short>(0x87f0));
    if constexpr (kOrdinary) {
      return _mm512_add_epi16(_mm512_and_si512(number, sign_and_number), over);
    }
    I magnitude = _mm512_and_si512(number, _mm512_set1_epi16(0x7f0));
    __mmask32 small =
        _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(0x80));
    magnitude = _mm512_mask_permutexvar_epi16(
        magnitude, small, _mm512_srli_epi16(words, 8), small_e4m3());
    __mmask32 not_zero =
        _mm512_test_epi16_mask(number, _mm512_set1_epi16(0x7f0));
    magnitude = _mm512_maskz_add_epi16(not_zero, magnitude, over);
    I sign =
        _mm512_and_si512(number, _mm512_set1_epi16(static_cast<short>(0x8000)));
    return _mm512_or_si512(magnitude, sign);
  }

  // high[0:16] + low[0:16] = v, to at least 16 bits, as bfloat16. low may be
  // null.
  static void split(F v, uint16_t* high, uint16_t* low) {
    store_rounded<Dtype::kBFloat16>(reinterpret_cast<uint8_t*>(high), v);
    if (!low) return;
    F first =
        load_as_float<Dtype::kBFloat16>(reinterpret_cast<const uint8_t*>(high));
    store_rounded<Dtype::kBFloat16>(reinterpret_cast<uint8_t*>(low),
                                    _mm512_sub_ps(v, first));
  }

 private:
  static constexpr int kUpper = static_cast<int>(0xffff0000);
  static F zero_float() { return _mm512_setzero_ps(); }
  static I one_bits() { return _mm512_set1_epi32(127 << 23); }
  // (a & bits) | c.
  static I and_or(I a, int bits, I c) {
    return _mm512_ternarylogic_epi32(a, _mm512_set1_epi32(bits), c, 0xea);
  }
  static I rounded(F v) {
    return _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(0x8000));
  }
  static I upper_halves(I a, I b) {
    return and_or(b, kUpper, _mm512_srli_epi32(a, 16));
  }
  static F rest(F v, I near) {
    I upper = _mm512_and_si512(near, _mm512_set1_epi32(kUpper));
    return _mm512_sub_ps(v, _mm512_castsi512_ps(upper));
  }

  // Exponents where both bfloat16 of a lane have them.
  static I twice(I exponents) {
    return _mm512_or_si512(_mm512_slli_epi32(exponents, 23),
                           _mm512_and_si512(_mm512_slli_epi32(exponents, 7),
                                            _mm512_set1_epi32(0xffff)));
  }

  // Halves whose bits begin with bit kFirst of the halves of v, before it if it
  // is negative. Bits from elsewhere are undefined, and so is the other byte of
  // a result of one byte. The port that shifts has enough to do.
  template <int kFirst>
  static I halves_from(I v) {
    constexpr auto byte = [](int at) {
      return uint64_t((at + kFirst) & 63) << at;
    };
    constexpr uint64_t kBytes = byte(0) | byte(8) | byte(16) | byte(24) |
                                byte(32) | byte(40) | byte(48) | byte(56);
    return _mm512_multishift_epi64_epi8(
        _mm512_set1_epi64(static_cast<int64_t>(kBytes)), v);
  }

  // Looks up code number kPart of each half word. The fifth bit of an index is
  // another code's, and the table repeats.
  template <int kPart>
  static I of_table(I words, const Table& table) {
    if constexpr (kPart > 0) words = halves_from<4 * kPart>(words);
    return _mm512_permutexvar_epi16(words, _mm512_load_si512(table.numbers));
  }

  // Subnormal numbers of E4M3, m * 2^-9, less the exponent of scaled_e4m3: an
  // exponent of 1 is 2^-6 there.
  static I small_e4m3() {
    constexpr int kOne = 128, kEighth = 16;
    static constexpr Table kTable = {{0,
                                      -2 * kOne,
                                      -kOne,
                                      -kOne + 4 * kEighth,
                                      0,
                                      2 * kEighth,
                                      4 * kEighth,
                                      6 * kEighth}};
    return _mm512_load_si512(kTable.numbers);
  }
};

}  // namespace
}  // namespace nibble::cpu
