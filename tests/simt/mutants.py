"""Mutants: our own kernels, each with one seeded mistake."""

from __future__ import annotations

from dataclasses import dataclass

_BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@dataclass(frozen=True)
class Mutant:
    """A kernel with each `old` in its text replaced by `new`."""

    what: str
    kernel: str
    old: str
    new: str


def _qmv(what: str, old: str, new: str, types: str = "f16_f16") -> Mutant:
    return Mutant(what, f"qmv_{types}_b4_g64", old, new)


def _quad(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmv_quad_f16_f16_b4_g32", old, new)


def _multi(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmv_multi_f16_f16_b4_g64_r2", old, new)


def _joint(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "joint_qmv_f16_f16_b4_g64", old, new)


def _qmm(what: str, old: str, new: str, format: str = "b4_g64") -> Mutant:
    return Mutant(what, f"qmm_f16_f16_{format}_bm32_bn32_bk32_wm2_wn2", old, new)


def _skinny(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmm_skinny_f16_f16_b4_g64_bm16_bn32_wk8", old, new)


def _qmm3(what: str, old: str, new: str) -> Mutant:
    return _qmm(what, old, new, "b3_g32")


def _skinny5(what: str, old: str, new: str) -> Mutant:
    return Mutant(what, "qmm_skinny_f16_f16_b5_g64_bm16_bn32_wk8", old, new)


def _of(kernel: str, what: str, old: str, new: str) -> Mutant:
    return Mutant(what, kernel, old, new)


_QVM = "qvm_f16_f16_b4_g64"
_QMM_N = "qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4"
_QMM_N3 = "qmm_n_f16_f16_b3_g32_bm32_bn512_bk8_wm1_wn8"
_QMM_N6 = "qmm_n_f16_f16_b6_g32_bm32_bn256_bk16_wm1_wn8"
_HALF = "qmm_half_bf16_bf16_b4_g32_bm32_bn32_bk32_wm2_wn2"
_SPLITK = "qmm_splitk_f16_f16_b4_g64_bm64_bn64_bk32_wm2_wn2"
_SPLITK_SUM = "qmm_splitk_sum_f16_f16_b4_g64"
_GATHER_SORTED_N = "gather_sorted_qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4"
_GATHER_QMM = "gather_qmm_f16_f16_b4_g32_bm16_bn32_bk32_wm1_wn2"

_GRADIENT = "group_gradient_f16_f16_b4_g64"
_GRADIENT3 = "group_gradient_f16_f16_b3_g32"
_GRADIENT_OF_EXPERTS = "gather_group_gradient_f16_f16_b4_g64"

_MXFP4 = "qmv_f16_e8m0_b4_g32_mxfp4"
_MXFP8 = "qmv_multi_f16_e8m0_b8_g32_mxfp8_r2"
_NVFP4 = "qmm_f16_e4m3_b4_g16_nvfp4_bm32_bn32_bk32_wm2_wn2"
_NVFP4_SKINNY = "qmm_skinny_f16_e4m3_b4_g16_nvfp4_bm16_bn32_wk8"
_NVFP4_N = "qmm_n_f16_e4m3_b4_g16_nvfp4_bm32_bn128_bk32_wm1_wn4"
_QMV1 = "qmv_f16_f16_b1_g32"

MUTANTS = [
    # Floats, groups of 16, and 1 bit.
    _of(_MXFP4, "a float without its sign", "sign & 0x80008000u", "sign & 0u"),
    _of(_MXFP4, "exponents of one bit", "0x0e000e00u", "0x06000600u"),
    _of(_MXFP4, "pairs of neighbours", "pairs[i % 4][i / 4]", "pairs[i / 2][i % 2]"),
    _of(_MXFP4, "a power of two too many", "uint(byte) << 23", "uint(byte + 1) << 23"),
    _of(_MXFP4, "codes that stay subnormal", "half(16384.0f)", "half(1.0f)"),
    _of(_MXFP8, "four codes as eight", "words[first / 4]", "words[first / 8]"),
    _of(_MXFP8, "bytes in another order", "pairs[i % 2][i / 2]", "pairs[i / 2][i % 2]"),
    _of(_NVFP4, "the group of the first half", "holder + half_way", "holder"),
    _of(_NVFP4, "a scale without its sign", "uint(byte) << 8", "0u"),
    _of(_NVFP4_SKINNY, "one group for both", "affine[n][kGroups - 1]", "affine[n][0]"),
    _of(_NVFP4_N, "one group for a thread", "affine[i / Q::kGroupSize]", "affine[0]"),
    _of(_QMV1, "codes of two groups", "bits > 1 && run_codes", "run_codes"),
    # The order of bits, words and groups.
    _qmv("nibble order", "shift = i * bits % 32", "shift = 28 - i * bits % 32"),
    _qmv("code not in place", "& (mask << shift)", "& mask"),
    _qmv("code masked short", "(1u << bits) - 1u", "(1u << (bits - 1)) - 1u"),
    _qmm("last word dropped", "words[i + 3] = v.w", "words[i + 3] = 0"),
    _qmv("two words the same", "words[i + 1] = v.y", "words[i + 1] = v.x"),
    _qmv("group of the first 64", "size_t(k / Q::kGroupSize)", "size_t(0)"),
    _qmv("groups of another size", "size_t(K_ / Q::kGroupSize)", "size_t(K_ / 32)"),
    _qmv(
        "rows of another length",
        "words_of(K, Q::kBits)) +\n           words",
        "words_of(K, 8)) + words",
    ),
    _joint(
        "the last tile of a matrix goes to the next",
        "across < third ? 1 : 2",
        "across < third - 1 ? 1 : 2",
    ),
    _joint(
        "the tiles of every matrix count from the first",
        "across - (which == 0 ? 0 : which == 1 ? second : third)",
        "across",
    ),
    _joint(
        "a bias is added to another product",
        "(params.biased >> which) & 1",
        "(params.biased >> (2 - which)) & 1",
    ),
    _of(
        "joint_qmm_skinny_f16_f16_b4_g64_bm8_bn32_wk8",
        "tiles as wide as those of vectors",
        "kColumns = Family::columns_of_tile()",
        "kColumns = 8",
    ),
    _multi("one code for four", "value(codes, j,", "value(codes, 0,"),
    Mutant(
        "group of a block before",
        "qmm_f16_f16_b4_g32_bm32_bn32_bk32_wm2_wn2",
        "if (k % Q::kGroupSize == 0)",
        "if (k == 0)",
    ),
    _qmm(
        "passed by the wrong lane",
        "holder = (same ? window : wanted) / 4 % 4",
        "holder = 0",
    ),
    _qmm(
        "one lane holds every window",
        "same = 4 % window_words == 0",
        "same = true",
        "b8_g64",
    ),
    _qmm("share of another lane", "() + quad_lane * 4;", "() + quad_lane % 2 * 4;"),
    _qmm(
        "a line of the row before",
        "first >= range.begin && first < range.end",
        "first >= range.begin && first <= range.end",
    ),
    _qmm("a line never fetched", "if (window % line_words() == 0)", "if (window == 0)"),
    _qmm3("two lines never fetched", "if (last == have)", "if (have >= 0)"),
    _qmm3("a line fetched too late", "first != last", "false"),
    _qmm3("the line before forgotten", "before[i] = held[i];", "before[i] = 0;"),
    _qmm3("the line before for all", "i >= begin;", "i >= 0;"),
    _qmm3("a share not shifted", "mine[i] >>= shift;", ""),
    _qmm3("half of a share", "mine[i] |= next << 1 << (31 - shift);", ""),
    _qmm3("words past a short row", "first + i < range.end", "true"),
    _skinny5("a fifth word", "wanted < window + line_words()", "true"),
    _skinny5(
        "the second two lanes beside",
        "simd_shuffle_xor(value, ushort(apart))",
        "simd_shuffle_xor(value, ushort(2))",
    ),
    _skinny5("another row of the quad", "(lane & 2) | (holder & 1)", "holder & 1"),
    _skinny5("the half that asks", "holder / 2 == quad_lane / 2", "holder / 2 == 0"),
    _skinny5(
        "a share of fewer steps",
        "(steps + simdgroups - 1) / simdgroups",
        "steps / simdgroups",
    ),
    _skinny5("a line for another simdgroup", "lines + (n - TN)", "lines + (n + TN)"),
    _skinny5("a line handed over that nobody takes", "last_line == handed", "false"),
    _skinny5(
        "no barrier before the lines",
        f"      }}\n      {_BARRIER}\n    }}\n    const WordRange mine",
        "      }\n    }\n    const WordRange mine",
    ),
    _skinny5(
        "no barrier after the lines",
        f"sums overwrite the lines.\n      {_BARRIER}",
        "sums overwrite the lines.",
    ),
    _of(_QMM_N, "words of the first tile", "range.begin + place * 4", "place * 4"),
    _of(
        _QMM_N3,
        "passed by its neighbour",
        "ushort(holder & 3)",
        "ushort((holder ^ 1) & 3)",
    ),
    _of(_QMM_N6, "the lower half of all", "upper ? other : value", "value"),
    _of(_QMM_N6, "the upper half of none", "upper ? value : other", "other"),
    _of(
        _QMM_N3,
        "the first half for all",
        "(holder & kHalf) != 0 ? high",
        "false ? high",
    ),
    _of(
        _QMM_N3,
        "passed word of itself",
        "const int wanted = first + ((i - first) & 3);\n      // Past",
        "const int wanted = first + i;\n      // Past",
    ),
    _of(_QMM_N3, "share of the first thread", "place * count * Q::kBits / 32", "0"),
    _qmm("scale of the first of four groups", "k / Q::kGroupSize % 4", "0"),
    # Arithmetic.
    _qmv("bias dropped", "fma(affine.y, x_sum, fma", "fma(0.0f, x_sum, fma"),
    _qmm(
        "bias dropped by value()",
        "codes.first + i), affine.y)",
        "codes.first + i), 0.0f)",
    ),
    _qmv("bias of the wrong row", "arrays.biases[group]", "arrays.biases[0]"),
    _qmv("sum misses a value", "sum += value;", "sum += j == 3 ? 0.0f : value;"),
    _qmv("x not scaled", "value * Q::unshift(i + j)", "value"),
    _qmv("half accumulation", "float dot = 0.0f;", "half dot = half(0.0f);", "f32_f16"),
    _qmv("part of K missed", "k += lanes * kCodes", "k += 2 * lanes * kCodes"),
    _qmv(
        "four lanes summed",
        "lanes == 4 ? quad_sum(value) : simd_sum(value)",
        "quad_sum(value)",
    ),
    _quad(
        "all quads summed",
        "lanes == 4 ? quad_sum(value) : simd_sum(value)",
        "simd_sum(value)",
    ),
    _of(
        "qmv_f16_f16_b4_g64_sym",
        "sign of the zero point",
        "scale * -float(1 << (bits - 1))",
        "scale * float(1 << (bits - 1))",
    ),
    _of(
        "qmv_f16_f16_b4_g64_sym",
        "zero point off by one",
        "-float(1 << (bits - 1))",
        "-float((1 << (bits - 1)) - 1)",
    ),
    _of(
        "qmv_f16_f16_b4_g64_sym",
        "biases read that are not there",
        "scale * -float(1 << (bits - 1))",
        "float(arrays.biases[group])",
    ),
    _of(
        "swiglu_f16_f16_b4_g64",
        "gate and up swapped",
        "ups[r] *= gates[r] / (1.0f + exp(-gates[r]));",
        "ups[r] = gates[r] * ups[r] / (1.0f + exp(-ups[r]));",
    ),
    _of(
        "swiglu_f16_f16_b4_g64",
        "sign of the exponent",
        "exp(-gates[r])",
        "exp(gates[r])",
    ),
    _qmm("w not transposed", "from[stride]", "from[1]"),
    _qmm("layout of a fragment", "((lane >> 1) & 3)", "(lane & 3)"),
    _of(_QVM, "the other half's sum", "ushort(NIBBLE_QVM_LANES)", "ushort(8)"),
    # Addends.
    _qmv("bias of the first column", "bias[column]", "bias[0]"),
    _qmv("residual of the first batch", "residual_ + offset", "residual_"),
    _quad("bias left out", "parts & NIBBLE_BIAS", "false"),
    _multi("residual left out", "parts & NIBBLE_RESIDUAL", "false"),
    _skinny("bias that is not there", "parts & NIBBLE_BIAS", "true"),
    _qmm("residual of the column before", "residual[offset]", "residual[offset - 1]"),
    _multi(
        "rounded twice", "sum += float(residual", "sum = float(T(sum)) + float(residual"
    ),
    _of(_HALF, "overflow of half", "largest <= kMost", "largest <= 1.0e30f"),
    _of(_HALF, "underflow of half", "largest >= kLeast", "largest >= 0.0f"),
    _of(_HALF, "x not watched", "x_loader.fit_half() && w_loader.fit", "w_loader.fit"),
    _of(
        _HALF,
        "w not watched",
        "x_loader.fit_half() && w_loader.fit",
        "x_loader.fit_half()",
    ),
    _of(
        _HALF,
        "the trial stored in any case",
        "} else {\n      tile.store",
        "}\n    {\n      tile.store",
    ),
    _of(_HALF, "one bfloat twice", "= half(low);", "= half(high);"),
    # Choice of the matrix and of the row.
    _qmv("weight of another batch", "int(batch) % params.w_count", "0"),
    _qmv("more batches than weights", "int(batch) % params.w_count", "int(batch)"),
    _qmv(
        "every batch into the first",
        "first_y},\n          y + first_y",
        "first_y},\n          y",
    ),
    _of(
        "gather_qmv_f16_f16_b4_g64",
        "expert by the wrong index",
        "int(rhs[index])",
        "int(lhs[index])",
    ),
    _of(
        "gather_qmv_f16_f16_b4_g64",
        "row by the wrong index",
        "size_t(lhs[index])",
        "size_t(index)",
    ),
    _of(
        _GATHER_QMM,
        "one expert for all rows",
        "first_of(rhs, begin, end, expert + 1)",
        "end",
    ),
    _of(_GATHER_QMM, "no row of the expert", "end, expert + 1)", "end, expert)"),
    _of(_GATHER_QMM, "first tiles only", "through > before", "true"),
    _of(
        _GATHER_QMM,
        "tiles that begin before their window",
        "(window - first + BM - 1) / BM",
        "(window - first) / BM",
    ),
    _of(
        _GATHER_QMM,
        "a tile past the last product",
        "begin + BM < B ? begin + BM : B",
        "begin + BM",
    ),
    _of(
        _GATHER_SORTED_N,
        "rows of other experts stored",
        "rows.end,\n      params.N",
        "params.B,\n      params.N",
    ),
    _of(
        "gather_qvm_f16_f16_b4_g64",
        "rows of x as long as those of y",
        "size_t(Family::columns_in(N, K))",
        "size_t(Family::columns_out(N, K))",
    ),
    _of(
        "gather_qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4",
        "rows of y as long as those of x",
        "size_t(Family::columns_out(N, K))",
        "size_t(Family::columns_in(N, K))",
    ),
    _of(_GATHER_QMM, "rows in the order of x", "size_t(indices[row])", "size_t(row)"),
    # Edges.
    _qmv(
        "a row too many stored",
        "lane == 0 && row < N",
        "lane == 0 && row <= N",
    ),
    _qmv("rows past the end read", "min(first_row + r, N - 1)", "first_row + r"),
    _qmv(
        "one row past the end read",
        "min(first_row + r, N - 1)",
        "min(first_row + r, N)",
    ),
    _qmv("K past the end read", "k < weight.K", "k <= weight.K"),
    _multi("a row of x past the end", "min(first_x + m, M - 1)", "first_x + m + 1"),
    _qmm("a column past the edge", "if (column + 1 < N)", "if (column < N)"),
    _qmm("a row past the edge", "row >= M", "row > M"),
    _qmm(
        "rows of x past the end",
        "min(first_row + row + p * (rows / passes), M - 1)",
        "first_row + row + p * (rows / passes)",
    ),
    _qmm("a line past K", "&& first < range.end", "", "b4_g32"),
    _qmm("scales past K", "&& group_k < weight.K", ""),
    _skinny("a row of y past the edge", "y_row < M && y_column < N", "y_column < N"),
    _skinny("words past K", "w_inside = w_k < K", "w_inside = true"),
    _skinny("x past K", "x_inside = x_k < K", "x_inside = true"),
    _of(
        _QMM_N,
        "words of w past K",
        "min(first_column + BN, weight.K)",
        "first_column + BN",
    ),
    _of(
        "qmm_n_f32_f32_b3_g32_bm32_bn512_bk8_wm1_wn8",
        "no barrier before the only block is replaced",
        f"}} else if (more) {{\n      {_BARRIER}\n    }}",
        "}",
    ),
    _of(
        _QMM_N,
        "scales of columns past K",
        "if (column + g * Q::kGroupSize < weight.K)",
        "",
    ),
    _of(_QMM_N, "rows of w past N", "min(n + row, last_row)", "n + row"),
    _of(_QMM_N, "x past N", "if (n + column < N)", ""),
    _of(
        "dequantize_f16_f16_b4_g32",
        "a run past the row",
        "k >= params.K",
        "k > params.K",
    ),
    # Threads.
    _qmv("every lane stores", "lane == 0 && row < N", "row < N"),
    _qmm(
        "no barrier before the loop",
        f"memory + BM * kXStride, begin);\n  {_BARRIER}",
        "memory + BM * kXStride, begin);\n",
    ),
    _qmm("no barrier in the loop", f"k + BK);\n      {_BARRIER}", "k + BK);\n"),
    _qmm(
        "barrier of the wrong memory",
        "mem_flags::mem_threadgroup",
        "mem_flags::mem_device",
    ),
    _qmm(
        "barrier of the wrong scope",
        f"k + BK);\n      {_BARRIER}",
        "k + BK);\n      simdgroup_barrier(mem_flags::mem_threadgroup);",
    ),
    _qmm("stale stage", "at = kStage - at;", ""),
    _qmm(
        "a barrier that some reach",
        f"k + BK);\n      {_BARRIER}",
        f"k + BK);\n      if (sgid > 0) {_BARRIER}",
    ),
    _skinny(
        "too many write their sums",
        "sgid >= half_way && sgid < 2 * half_way",
        "sgid >= half_way",
    ),
    _skinny(
        "no barrier before the sums", f"    }}\n    {_BARRIER}\n    if", "    }\n    if"
    ),
    _skinny("no barrier after the sums", f"    }}\n    {_BARRIER}\n  }}", "    }\n  }"),
    _of(_HALF, "a simdgroup tries again alone", "any != 0", "mine != 0"),
    _of(
        _HALF,
        "no barrier before the word",
        f"uint(flag));\n  {_BARRIER}",
        "uint(flag));\n",
    ),
    _of(
        _HALF,
        "no barrier after the word",
        f"  {_BARRIER}\n  return any",
        "  return any",
    ),
    _of(
        _QVM,
        "no barrier before the columns",
        f"    {_BARRIER}\n    int column",
        "    int column",
    ),
    _of(_QVM, "both halves store", "if (lane < NIBBLE_QVM_LANES)", ""),
    # Parts of a split K.
    _of(_SPLITK, "every part the first", "int(tgid.z) * params.part", "0"),
    _of(
        _SPLITK,
        "a part runs into the next",
        "min(begin + params.part, K)",
        "min(begin + params.part + BK, K)",
    ),
    _of(
        _SPLITK,
        "the last part runs past K",
        "min(begin + params.part, K)",
        "begin + params.part",
    ),
    _of(
        _SPLITK,
        "sums of all parts in one place",
        "sums + size_t(tgid.z) * size_t(M) * size_t(N)",
        "sums",
    ),
    _of(
        _SPLITK,
        "the first block of K for that of a part",
        "w_loader.fetch(begin)",
        "w_loader.fetch(0)",
    ),
    _of(
        _SPLITK_SUM,
        "a part never added",
        "part < params.parts",
        "part < params.parts - 1",
    ),
    _of(_SPLITK_SUM, "a part too many", "part < params.parts", "part <= params.parts"),
    _of(
        _SPLITK_SUM,
        "sums in the type of y",
        "float sum = sums[at]",
        "T sum = T(sums[at])",
    ),
    _of(
        _SPLITK_SUM,
        "an element past the row",
        "column >= params.N",
        "column > params.N",
    ),
    # Language.
    _qmv("missing qualifier", "T* x, thread float* scaled", "T* x, float* scaled"),
    _skinny("wrong address space", "threadgroup float2* mine", "device float2* mine"),
    _qmv("double", "float dot = 0.0f;", "double dot = 0.0;"),
    _qmv("implicit bfloat", "return T(sum);", "return sum;", "bf16_bf16"),
    # Gradients of scales and biases.
    _of(_GRADIENT, "rows past the last", "if (at < rows.count) {", "{"),
    _of(
        _GRADIENT,
        "columns past the last",
        "if (column + i < width) {",
        "{",
    ),
    _of(_GRADIENT, "rows of w past the last", "min(row() + i, p.N - 1)", "row() + i"),
    _of(_GRADIENT, "a row of w that is not there", "inside && row < p.N", "inside"),
    _of(_GRADIENT, "half of the columns", "column + 4, p.K", "column, p.K"),
    _of(
        _GRADIENT,
        "columns of x in another order than codes",
        "four[j % 2 * 2], four[j % 2 * 2 + 1]",
        "four[j % 2 * 2 + 1], four[j % 2 * 2]",
    ),
    _of(
        _GRADIENT,
        "rows of another order",
        "float2(held[0][j], held[1][j])",
        "float2(held[1][j], held[0][j])",
    ),
    _of(
        _GRADIENT,
        "no barrier between squares",
        f"memory[place] = both;\n    {_BARRIER}",
        "memory[place] = both;",
    ),
    _of(_GRADIENT, "one square of two", "s < kShares; ++s", "s < 1; ++s"),
    _of(
        _GRADIENT,
        "two of four lanes",
        "both += simd_shuffle_xor(both, ushort(8));",
        "",
    ),
    _of(_GRADIENT, "batches in a row", "i / M) * size_t(w_count)", "i / M)"),
    _of(
        _GRADIENT,
        "biases over the scales",
        "scales + size_t(count) * groups",
        "scales",
    ),
    _of(_GRADIENT, "left for right", "p.transpose ? p.dy : p.x", "p.x"),
    _of(_GRADIENT3, "a share of its neighbour", ">> shift;", ">> 0;"),
    _of(_GRADIENT3, "codes in one word", "mine[w] |= next << 1 << (31 - shift);", ""),
    _of(_GRADIENT3, "a square past the columns", "square.first_column < p.K", "true"),
    _of(_GRADIENT_OF_EXPERTS, "the next expert", "tgid.z + 1)", "tgid.z + 2)"),
    _of(_GRADIENT_OF_EXPERTS, "products as they lie", "order[first + i / M]", "first"),
    _of(_GRADIENT_OF_EXPERTS, "x as dy lies", "lhs[product]", "product"),
]
