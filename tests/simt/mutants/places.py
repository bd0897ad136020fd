"""Mutants: the choice of a matrix or row, and edges."""

from __future__ import annotations

from tests.simt.mutants.mutant import BARRIER, QMM_N, multi, of, qmm, qmv, skinny

GATHER_SORTED_N = "gather_sorted_qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4"
GATHER_QMM = "gather_qmm_f16_f16_b4_g32_bm16_bn32_bk32_wm1_wn2"

MUTANTS = [
    # Choice of the matrix and of the row.
    qmv("weight of another batch", "int(batch) % params.w_count", "0"),
    qmv("more batches than weights", "int(batch) % params.w_count", "int(batch)"),
    qmv(
        "every batch into the first",
        "first_y},\n          y + first_y",
        "first_y},\n          y",
    ),
    of(
        "gather_qmv_f16_f16_b4_g64",
        "expert by the wrong index",
        "int(rhs[index])",
        "int(lhs[index])",
    ),
    of(
        "gather_qmv_f16_f16_b4_g64",
        "row by the wrong index",
        "size_t(lhs[index])",
        "size_t(index)",
    ),
    of(
        GATHER_QMM,
        "one expert for all rows",
        "first_of(rhs, begin, end, expert + 1)",
        "end",
    ),
    of(GATHER_QMM, "no row of the expert", "end, expert + 1)", "end, expert)"),
    of(GATHER_QMM, "first tiles only", "through > before", "true"),
    of(
        GATHER_QMM,
        "tiles that begin before their window",
        "(window - first + BM - 1) / BM",
        "(window - first) / BM",
    ),
    of(
        GATHER_QMM,
        "a tile past the last product",
        "begin + BM < B ? begin + BM : B",
        "begin + BM",
    ),
    of(
        GATHER_SORTED_N,
        "rows of other experts stored",
        "rows.end,\n      params.N",
        "params.B,\n      params.N",
    ),
    of(
        "gather_qvm_f16_f16_b4_g64",
        "rows of x as long as those of y",
        "size_t(Family::columns_in(N, K))",
        "size_t(Family::columns_out(N, K))",
    ),
    of(
        "gather_qmm_n_f16_f16_b4_g32_bm32_bn128_bk32_wm1_wn4",
        "rows of y as long as those of x",
        "size_t(Family::columns_out(N, K))",
        "size_t(Family::columns_in(N, K))",
    ),
    of(GATHER_QMM, "rows in the order of x", "size_t(indices[row])", "size_t(row)"),
    # Edges.
    qmv(
        "a row too many stored",
        "lane == 0 && row < N",
        "lane == 0 && row <= N",
    ),
    qmv("rows past the end read", "min(first_row + r, N - 1)", "first_row + r"),
    qmv(
        "one row past the end read",
        "min(first_row + r, N - 1)",
        "min(first_row + r, N)",
    ),
    qmv("K past the end read", "k < weight.K", "k <= weight.K"),
    multi("a row of x past the end", "min(first_x + m, M - 1)", "first_x + m + 1"),
    qmm("a column past the edge", "if (column + 1 < N)", "if (column < N)"),
    qmm("a row past the edge", "row >= M", "row > M"),
    qmm(
        "rows of x past the end",
        "min(first_row + row + p * (rows / passes), M - 1)",
        "first_row + row + p * (rows / passes)",
    ),
    qmm("a line past K", "&& first < range.end", "", "b4_g32"),
    qmm("scales past K", "&& group_k < weight.K", ""),
    skinny("a row of y past the edge", "y_row < M && y_column < N", "y_column < N"),
    skinny("words past K", "w_inside = w_k < K", "w_inside = true"),
    skinny("x past K", "x_inside = x_k < K", "x_inside = true"),
    of(
        QMM_N,
        "words of w past K",
        "min(first_column + BN, weight.K)",
        "first_column + BN",
    ),
    of(
        "qmm_n_f32_f32_b3_g32_bm32_bn512_bk8_wm1_wn8",
        "no barrier before the only block is replaced",
        f"}} else if (more) {{\n      {BARRIER}\n    }}",
        "}",
    ),
    of(
        QMM_N,
        "scales of columns past K",
        "if (column + g * Q::kGroupSize < weight.K)",
        "",
    ),
    of(QMM_N, "rows of w past N", "min(n + row, last_row)", "n + row"),
    of(QMM_N, "x past N", "if (n + column < N)", ""),
    of(
        "dequantize_f16_f16_b4_g32",
        "a run past the row",
        "k >= params.K",
        "k > params.K",
    ),
]
