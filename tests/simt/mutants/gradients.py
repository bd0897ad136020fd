"""Mutants: gradients of scales and biases."""

from __future__ import annotations

from tests.simt.mutants.mutant import BARRIER, of

GRADIENT = "group_gradient_f16_f16_b4_g64"
GRADIENT3 = "group_gradient_f16_f16_b3_g32"
GRADIENT_OF_EXPERTS = "gather_group_gradient_f16_f16_b4_g64"

MUTANTS = [
    of(GRADIENT, "rows past the last", "if (at < rows.count) {", "{"),
    of(
        GRADIENT,
        "columns past the last",
        "if (column + i < width) {",
        "{",
    ),
    of(GRADIENT, "rows of w past the last", "min(row() + i, p.N - 1)", "row() + i"),
    of(GRADIENT, "a row of w that is not there", "inside && row < p.N", "inside"),
    of(GRADIENT, "half of the columns", "column + 4, p.K", "column, p.K"),
    of(
        GRADIENT,
        "columns of x in another order than codes",
        "four[j % 2 * 2], four[j % 2 * 2 + 1]",
        "four[j % 2 * 2 + 1], four[j % 2 * 2]",
    ),
    of(
        GRADIENT,
        "rows of another order",
        "float2(held[0][j], held[1][j])",
        "float2(held[1][j], held[0][j])",
    ),
    of(
        GRADIENT,
        "no barrier between squares",
        f"memory[place] = both;\n    {BARRIER}",
        "memory[place] = both;",
    ),
    of(GRADIENT, "one square of two", "s < kShares; ++s", "s < 1; ++s"),
    of(
        GRADIENT,
        "two of four lanes",
        "both += simd_shuffle_xor(both, ushort(8));",
        "",
    ),
    of(GRADIENT, "batches in a row", "i / M) * size_t(w_count)", "i / M)"),
    of(
        GRADIENT,
        "biases over the scales",
        "scales + size_t(count) * groups",
        "scales",
    ),
    of(GRADIENT, "left for right", "p.transpose ? p.dy : p.x", "p.x"),
    of(GRADIENT3, "a share of its neighbour", ">> shift;", ">> 0;"),
    of(GRADIENT3, "codes in one word", "mine[w] |= next << 1 << (31 - shift);", ""),
    of(GRADIENT3, "a square past the columns", "square.first_column < p.K", "true"),
    of(GRADIENT_OF_EXPERTS, "the next expert", "tgid.z + 1)", "tgid.z + 2)"),
    of(GRADIENT_OF_EXPERTS, "products as they lie", "order[first + i / M]", "first"),
    of(GRADIENT_OF_EXPERTS, "x as dy lies", "lhs[product]", "product"),
]
