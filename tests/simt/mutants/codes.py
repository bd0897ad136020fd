"""Mutants: codes, words and groups."""

from __future__ import annotations

from tests.simt.mutants.mutant import (
    BARRIER,
    QMM_N,
    Mutant,
    joint,
    multi,
    of,
    qmm,
    qmm3,
    qmv,
    skinny5,
)

QMM_N3 = "qmm_n_f16_f16_b3_g32_bm32_bn512_bk8_wm1_wn8"
QMM_N6 = "qmm_n_f16_f16_b6_g32_bm32_bn256_bk16_wm1_wn8"
MXFP4 = "qmv_f16_e8m0_b4_g32_mxfp4"
MXFP8 = "qmv_multi_f16_e8m0_b8_g32_mxfp8_r2"
NVFP4 = "qmm_f16_e4m3_b4_g16_nvfp4_bm32_bn32_bk32_wm2_wn2"
NVFP4_SKINNY = "qmm_skinny_f16_e4m3_b4_g16_nvfp4_bm16_bn32_wk8"
NVFP4_N = "qmm_n_f16_e4m3_b4_g16_nvfp4_bm32_bn128_bk32_wm1_wn4"
QMV1 = "qmv_f16_f16_b1_g32"

MUTANTS = [
    # Floats, groups of 16, and 1 bit.
    of(MXFP4, "a float without its sign", "sign & 0x80008000u", "sign & 0u"),
    of(MXFP4, "exponents of one bit", "0x0e000e00u", "0x06000600u"),
    of(MXFP4, "pairs of neighbours", "pairs[i % 4][i / 4]", "pairs[i / 2][i % 2]"),
    of(MXFP4, "a power of two too many", "uint(byte) << 23", "uint(byte + 1) << 23"),
    of(MXFP4, "codes that stay subnormal", "half(16384.0f)", "half(1.0f)"),
    of(MXFP8, "four codes as eight", "words[first / 4]", "words[first / 8]"),
    of(MXFP8, "bytes in another order", "pairs[i % 2][i / 2]", "pairs[i / 2][i % 2]"),
    of(NVFP4, "the group of the first half", "holder + half_way", "holder"),
    of(NVFP4, "a scale without its sign", "uint(byte) << 8", "0u"),
    of(NVFP4_SKINNY, "one group for both", "affine[n][kGroups - 1]", "affine[n][0]"),
    of(NVFP4_N, "one group for a thread", "affine[i / Q::kGroupSize]", "affine[0]"),
    of(QMV1, "codes of two groups", "bits > 1 && run_codes", "run_codes"),
    # The order of bits, words and groups.
    qmv("nibble order", "shift = i * bits % 32", "shift = 28 - i * bits % 32"),
    qmv("code not in place", "& (mask << shift)", "& mask"),
    qmv("code masked short", "(1u << bits) - 1u", "(1u << (bits - 1)) - 1u"),
    qmm("last word dropped", "words[i + 3] = v.w", "words[i + 3] = 0"),
    qmv("two words the same", "words[i + 1] = v.y", "words[i + 1] = v.x"),
    qmv("group of the first 64", "size_t(k / Q::kGroupSize)", "size_t(0)"),
    qmv("groups of another size", "size_t(K_ / Q::kGroupSize)", "size_t(K_ / 32)"),
    qmv(
        "rows of another length",
        "words_of(K, Q::kBits)) +\n           words",
        "words_of(K, 8)) + words",
    ),
    joint(
        "the last tile of a matrix goes to the next",
        "across < third ? 1 : 2",
        "across < third - 1 ? 1 : 2",
    ),
    joint(
        "the tiles of every matrix count from the first",
        "across - (which == 0 ? 0 : which == 1 ? second : third)",
        "across",
    ),
    joint(
        "a bias is added to another product",
        "(params.biased >> which) & 1",
        "(params.biased >> (2 - which)) & 1",
    ),
    of(
        "joint_qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8",
        "tiles as wide as those of vectors",
        "kColumns = Family::columns_of_tile()",
        "kColumns = 8",
    ),
    multi("one code for four", "value(codes, j,", "value(codes, 0,"),
    Mutant(
        "group of a block before",
        "qmm_f16_f16_b4_g32_bm32_bn32_bk32_wm2_wn2",
        "if (k % Q::kGroupSize == 0)",
        "if (k == 0)",
    ),
    qmm(
        "passed by the wrong lane",
        "holder = (same ? window : wanted) / 4 % 4",
        "holder = 0",
    ),
    qmm(
        "one lane holds every window",
        "same = 4 % window_words == 0",
        "same = true",
        "b8_g64",
    ),
    qmm("share of another lane", "() + quad_lane * 4;", "() + quad_lane % 2 * 4;"),
    qmm(
        "a line of the row before",
        "first >= range.begin && first < range.end",
        "first >= range.begin && first <= range.end",
    ),
    qmm("a line never fetched", "if (window % line_words() == 0)", "if (window == 0)"),
    qmm3("two lines never fetched", "if (last == have)", "if (have >= 0)"),
    qmm3("a line fetched too late", "first != last", "false"),
    qmm3("the line before forgotten", "before[i] = held[i];", "before[i] = 0;"),
    qmm3("the line before for all", "i >= begin;", "i >= 0;"),
    qmm3("a share not shifted", "mine[i] >>= shift;", ""),
    qmm3("half of a share", "mine[i] |= next << 1 << (31 - shift);", ""),
    qmm3("words past a short row", "first + i < range.end", "true"),
    skinny5("a fifth word", "wanted < window + line_words()", "true"),
    skinny5(
        "the second two lanes beside",
        "simd_shuffle_xor(value, ushort(apart))",
        "simd_shuffle_xor(value, ushort(2))",
    ),
    skinny5("another row of the quad", "(lane & 2) | (holder & 1)", "holder & 1"),
    skinny5("the half that asks", "holder / 2 == quad_lane / 2", "holder / 2 == 0"),
    skinny5(
        "a share of fewer steps",
        "(steps + simdgroups - 1) / simdgroups",
        "steps / simdgroups",
    ),
    skinny5("a line for another simdgroup", "lines + (n - TN)", "lines + (n + TN)"),
    skinny5("a line handed over that nobody takes", "last_line == handed", "false"),
    skinny5(
        "no barrier before the lines",
        f"      }}\n      {BARRIER}\n    }}\n    const WordRange mine",
        "      }\n    }\n    const WordRange mine",
    ),
    skinny5(
        "no barrier after the lines",
        f"sums overwrite the lines.\n      {BARRIER}",
        "sums overwrite the lines.",
    ),
    of(QMM_N, "words of the first tile", "range.begin + place * 4", "place * 4"),
    of(
        QMM_N3,
        "passed by its neighbour",
        "ushort(holder & 3)",
        "ushort((holder ^ 1) & 3)",
    ),
    of(QMM_N6, "the lower half of all", "upper ? other : value", "value"),
    of(QMM_N6, "the upper half of none", "upper ? value : other", "other"),
    of(
        QMM_N3,
        "the first half for all",
        "(holder & kHalf) != 0 ? high",
        "false ? high",
    ),
    of(
        QMM_N3,
        "passed word of itself",
        "const int wanted = first + ((i - first) & 3);\n      // Past",
        "const int wanted = first + i;\n      // Past",
    ),
    of(QMM_N3, "share of the first thread", "place * count * Q::kBits / 32", "0"),
    qmm("scale of the first of four groups", "k / Q::kGroupSize % 4", "0"),
]
