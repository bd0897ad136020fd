"""Counts the memory traffic of our Metal kernels and of MLX's, on Linux.

    python -m bench.counts [--json FILE]
    python -m bench.counts --widths [--json FILE]

Both run the same problems in the SIMT bench (tests/simt). It counts reads of the
weights, cache lines that their loads touch, threadgroup traffic and barriers, and the
instructions between lanes, with their published cycles on M1. With
--widths, it runs every width of a code, and every number of rows for which the weights
are read once. Both end with x @ w_hat, w not transposed. These are counts, not times:
they do not say how fast a GPU is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlx_nibble.formats import SUPPORTED_BITS
from tests import simt
from tests.simt import executor, mlx_kernels, numbers, plans, products
from tests.support import oracle

# Cycles that one instruction of a simdgroup takes on M1: the throughputs of
# philipturner/metal-benchmarks (README of commit dc2adc6), under "Intra-simd
# communication". Newer GPUs have no published ones.
CYCLES = {
    "shuffles": 28.25,  # SHUFFLE_RANDOM_SAME32: simd_shuffle by an index of each lane
    "fixed_shuffles": 2.04,  # SHUFFLE_ROTATE32, and those of quads
    "reductions": 14.54,  # SUM<F32>
    "matrix_products": 18.0,  # MATMUL<8x8xF32>
}

# K spans several steps of every kernel and is a multiple of MLX's 512.
BASE = simt.Problem(N=128, K=2048)
# A prompt; ratios of tiles do not depend on K.
PROMPT = replace(BASE, M=512, K=512)
# Rows of w as long as in models.
NARROW = replace(BASE, N=64, K=4096)
# Several simdgroups of MLX's store the same result.
OPTIONS = simt.Options(instrumented=True, redundant_writes=True)
# Rows, and the kernels that MLX's dispatch may choose for them: qmv_fast for each row
# on M1 and M2, qmv_wide on later GPUs, tiles for more rows.
CASES = [
    (1, ("affine_qmv_fast",)),
    (2, ("affine_qmv_fast", "affine_qmv_wide")),
    (4, ("affine_qmv_fast", "affine_qmv_wide")),
    (8, ("affine_qmv_fast", "affine_qmv_wide", "affine_qmm_t")),
    (16, ("affine_qmv_wide", "affine_qmm_t")),
    (32, ("affine_qmv_wide", "affine_qmm_t")),
    (64, ("affine_qmm_t",)),
    (PROMPT.M, ("affine_qmm_t",)),
]
WIDTHS = SUPPORTED_BITS
# x @ w_hat, with a y of two tiles of our widest kernels and an x of many of their
# blocks, and the kernels that either dispatch chooses from.
NOT_TRANSPOSED = replace(BASE, N=256, K=1024, transpose=False)
NOT_TRANSPOSED_CASES = [
    (1, "qvm", "affine_qvm"),
    (4, "qmm_n", "affine_qmm_n"),
    (32, "qmm_n", "affine_qmm_n"),
]
# Rows for which weights are read once: both ends of the range of each kernel.
READ_ONCE = (1, 2, 3, 4, 5, 6, 8, 9, 16, 17, 32)


@dataclass(frozen=True)
class Counts:
    """Counts of one plan, relative to a single read. Lines have 64 bytes or 128.

    Attributes:
        M: Rows of x.
        kernel: Name of the kernel.
        weights: Bytes of w read, over the bytes of w.
        weight_lines: Cache lines that loads of w touch, over the lines of w.
        weight_lines_128: As weight_lines, for lines of 128 bytes.
        scales: Bytes of scales and biases that simdgroups request, over their bytes.
            Bytes that lanes share count once.
        scale_lines: As weight_lines, for scales and biases.
        x_lines: Cache lines that loads of x touch, over the lines of x.
        threadgroup_bytes: Bytes read and written, per 1000 multiplications.
        barriers: Barriers of a threadgroup, per million multiplications.
        shuffle_cycles: Cycles of shuffles and reductions of a simdgroup, per 1000
            multiplications, by `CYCLES`.
        product_cycles: As shuffle_cycles, for 8x8 products.
        sums: Bytes of the sums written and read between launches, over the bytes of w.
    """

    M: int
    kernel: str
    weights: float
    weight_lines: float
    weight_lines_128: float
    scales: float
    scale_lines: float
    x_lines: float
    threadgroup_bytes: float
    barriers: float
    shuffle_cycles: float
    product_cycles: float
    sums: float


def counts(kernel: str, p: simt.Problem, outcomes: list[simt.Outcome]) -> Counts:
    memory = [region for outcome in outcomes for region in outcome.memory]
    # Only the sums belong to several launches.
    regions = {region["name"]: region for region in memory}
    multiplications = p.M * p.N * p.K

    def over(*names: str, what: str, unit: int) -> float:
        used = sum(regions[name][what] for name in names)
        return used * unit / sum(regions[name]["bytes"] for name in names)

    def moved(*regions: dict[str, Any]) -> int:
        return sum(r["read"] + r["written"] for r in regions)

    def cycles(*instructions: str) -> float:
        used = sum(o.counters[i] * CYCLES[i] for o in outcomes for i in instructions)
        return 1e3 * used / multiplications

    barriers = sum(o.counters["threadgroup_barriers"] for o in outcomes)
    sums = [r for r in memory if r["name"] == "sums"]
    shared = [r for r in memory if r["space"] == "threadgroup"]
    return Counts(
        M=p.M,
        kernel=kernel,
        weights=over("w", what="read", unit=1),
        weight_lines=over("w", what="lines_64", unit=64),
        weight_lines_128=over("w", what="lines_128", unit=128),
        scales=over("scales", "biases", what="requested_bytes", unit=1),
        scale_lines=over("scales", "biases", what="lines_64", unit=64),
        x_lines=over("x", what="lines_64", unit=64),
        threadgroup_bytes=1e3 * moved(*shared) / multiplications,
        barriers=1e6 * barriers / multiplications,
        shuffle_cycles=cycles("shuffles", "fixed_shuffles", "reductions"),
        product_cycles=cycles("matrix_products"),
        sums=moved(*sums) / regions["w"]["bytes"],
    )


def measure(
    p: simt.Problem, ours: list[list[simt.Launch]], theirs: tuple[str, ...]
) -> list[Counts]:
    """Return the counts of our plans and of MLX's kernels, for the same operands."""
    rng = np.random.default_rng(0)
    inner = p.K if p.transpose else p.N
    w = oracle.random_weights(rng, (1, p.N, p.K), p.bits, p.group_size)
    operands = {
        "w": w.words,
        "scales": numbers.encode(w.scales, p.scale_dtype),
        "biases": numbers.encode(w.biases, p.scale_dtype),
        "x": numbers.encode(rng.standard_normal((1, p.M, inner)), p.dtype),
    }
    # MLX's N is the number of columns of y, whether or not w is transposed.
    as_mlx = p if p.transpose else replace(p, N=p.K, K=p.N)
    result = []
    columns = p.N if p.transpose else p.K
    for launches in ours:
        outcomes, written = [], {}
        for launch in launches:
            outputs = products.outputs_of(launch, (1, p.M, columns), p.dtype)
            outcome = executor.run(launch, operands | written, outputs, OPTIONS)
            written |= outcome.outputs
            outcomes.append(outcome)
        result.append(counts(launches[0].kernel, p, outcomes))
    for kernel in theirs:
        outcome = mlx_kernels.call(kernel, as_mlx, operands, OPTIONS)
        result.append(counts(f"mlx {kernel}", p, [outcome]))
    return result


def every_kernel() -> list[Counts]:
    """Count every plan for some numbers of rows, beside MLX's kernels."""
    rows = []
    for M, theirs in CASES:
        p = PROMPT if M == PROMPT.M else replace(BASE, M=M)
        # If rows must not depend on each other, one row takes a kernel for many.
        invariant = plans.plan_matmul(replace(p, batch_invariant=True)) or []
        plan = {one[0].kernel: one for one in [*simt.candidates(p), invariant]}
        ours = list(plan.values())
        if p is PROMPT:
            ours = [one for one in ours if one[0].kernel.startswith("qmm_f16")]
        rows += measure(p, ours, theirs)
    return rows + not_transposed((BASE.bits,), NOT_TRANSPOSED)


def not_transposed(widths: tuple[int, ...], form: simt.Problem) -> list[Counts]:
    """Count x @ w_hat of this size, at each of these widths of a code."""
    rows = []
    for bits in widths:
        for M, family, theirs in NOT_TRANSPOSED_CASES:
            p = replace(form, M=M, bits=bits)
            every = simt.candidates(p)
            ours = [one for one in every if one[0].kernel.startswith(family + "_")]
            for row in measure(p, ours, (theirs,)):
                is_mlx = row.kernel.startswith("mlx")
                name = f"{row.kernel} b{bits}" if is_mlx else row.kernel
                rows.append(replace(row, kernel=name))
    return rows


def every_width(K: int | None) -> list[Counts]:
    """Return the worst counts of each kernel at each width, over its rows."""
    narrow, other = (replace(p, K=K or p.K) for p in (NARROW, NOT_TRANSPOSED))
    worst: dict[str, Counts] = {}
    for bits in WIDTHS:
        for M in READ_ONCE:
            p = replace(narrow, bits=bits, M=M)
            (row,) = measure(p, simt.candidates(p)[:1], ())
            known = worst.get(row.kernel, row)
            worst[row.kernel] = max(
                known, row, key=lambda r: (r.weight_lines, r.scales)
            )
        tiles = replace(narrow, bits=bits, M=64)
        for launches in simt.candidates(tiles):
            if "_bm64_bn64_" in launches[0].kernel and len(launches) == 1:
                for row in measure(tiles, [launches], ("affine_qmm_t",)):
                    theirs = row.kernel.startswith("mlx")
                    name = f"{row.kernel} b{bits}" if theirs else row.kernel
                    worst[name] = replace(row, kernel=name)
    return list(worst.values()) + not_transposed(WIDTHS, other)


def table(rows: list[Counts]) -> str:
    lines = [
        "| M | kernel | w read | w lines | w lines of 128 | scales read | scale lines "
        "| x lines | threadgroup bytes / 1000 mul | barriers / 10⁶ mul "
        "| shuffle cycles / 1000 mul | 8×8 cycles / 1000 mul | sums |",
        "| ---: | --- |" + " ---: |" * 11,
    ]
    for row in rows:
        figures = (
            f"{row.weights:.2f}",
            f"{row.weight_lines:.2f}",
            f"{row.weight_lines_128:.2f}",
            f"{row.scales:.2f}",
            f"{row.scale_lines:.2f}",
            f"{row.x_lines:.1f}",
            f"{row.threadgroup_bytes:.1f}",
            f"{row.barriers:.1f}",
            f"{row.shuffle_cycles:.1f}",
            f"{row.product_cycles:.1f}",
            f"{row.sums:.2f}",
        )
        lines.append(f"| {row.M} | `{row.kernel}` | {' | '.join(figures)} |")
    return "\n".join(lines)


def write(path: Path, rows: list[Any]) -> None:
    """Write counts, which are dataclasses, as JSON."""
    text = json.dumps([asdict(row) for row in rows], indent=2)
    path.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the counts to a file")
    parser.add_argument(
        "--widths", action="store_true", help="count every width of a code"
    )
    parser.add_argument("-K", type=int, help="columns of w, with --widths")
    arguments = parser.parse_args()
    rows = every_width(arguments.K) if arguments.widths else every_kernel()
    print(table(rows))
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
