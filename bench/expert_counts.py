"""Counts what prompts of mixtures of experts cost our kernels and MLX's, on Linux.

    python -m bench.expert_counts [--json FILE]

The products of a prompt of 512 tokens, sorted by expert, as mlx-lm sorts them. Each
token draws its experts at random. Our tiles and MLX's `affine_gather_qmm_rhs` run in
the SIMT bench (tests/simt). Ratios of tiles do not depend on N and K, so these are
small. MLX's kernel gets the beginning of each expert's rows from a launch before it,
which is left out. Counts are not times.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.counts import CYCLES, OPTIONS, write
from tests.simt import build, executor, mlx_kernels, numbers, plans
from tests.simt.plans import GatherProblem, Launch
from tests.support import oracle

TOKENS = 512
# Experts, and experts of a token.
MODELS = {"Mixtral": (8, 2), "Qwen3-30B-A3B": (128, 8)}
_N, _K = 32, 256
_MLX_ROWS, _MLX_COLUMNS = 16, 32


@dataclass(frozen=True)
class Counts:
    """Counts of one kernel for all products of a prompt.

    Attributes:
        model: Model whose experts these are.
        kernel: Name of the kernel.
        weights: Bytes of w read, over the bytes of w.
        weight_lines: Cache lines of 64 bytes that loads of w touch, over those of w.
        x_lines: The same for x.
        threadgroup_bytes: Bytes read and written, per 1000 multiplications.
        barriers: Barriers of a threadgroup, per million multiplications.
        shuffle_cycles: Cycles of instructions between lanes, per 1000 multiplications.
        product_cycles: Cycles of 8x8 products, per 1000 multiplications.
    """

    model: str
    kernel: str
    weights: float
    weight_lines: float
    x_lines: float
    threadgroup_bytes: float
    barriers: float
    shuffle_cycles: float
    product_cycles: float


def _counts(
    model: str, kernel: str, p: GatherProblem, outcome: executor.Outcome
) -> Counts:
    regions = {region["name"]: region for region in outcome.memory}
    multiplications = p.B * p.N * p.K
    shared = [r for r in outcome.memory if r["space"] == "threadgroup"]

    def over(name: str, what: str, unit: int) -> float:
        return regions[name][what] * unit / regions[name]["bytes"]

    def cycles(*instructions: str) -> float:
        used = sum(outcome.counters[i] * CYCLES[i] for i in instructions)
        return 1e3 * used / multiplications

    return Counts(
        model,
        kernel,
        weights=over("w", "read", 1),
        weight_lines=over("w", "lines_64", 64),
        x_lines=over("x", "lines_64", 64),
        threadgroup_bytes=1e3
        * sum(r["read"] + r["written"] for r in shared)
        / multiplications,
        barriers=1e6 * outcome.counters["threadgroup_barriers"] / multiplications,
        shuffle_cycles=cycles("shuffles", "fixed_shuffles", "reductions"),
        product_cycles=cycles("matrix_products"),
    )


def _theirs(
    p: GatherProblem, operands: dict[str, np.ndarray], starts: np.ndarray
) -> executor.Outcome:
    """Run MLX's kernel; `starts` has the first product of each expert."""
    arguments = (
        f"half, {p.group_size}, {p.bits}, {_MLX_ROWS}, {_MLX_COLUMNS}, 32, 1, 2, true"
    )
    name = f"affine_gather_qmm_rhs_{arguments}".replace(", ", "_")
    unit = mlx_kernels.unit({(name, f"affine_gather_qmm_rhs<{arguments}>")})
    sizes = {"M": p.B, "N": p.N, "K": p.K, "experts": p.experts}
    arrays = {size: np.array([value], np.int32) for size, value in sizes.items()}
    launch = Launch(
        kernel=name,
        threadgroups=(p.N // _MLX_COLUMNS, p.B // _MLX_ROWS + p.experts, 1),
        threads=(32, 2, 1),
        buffers=("x", "w", "scales", "biases", "starts", "out", *sizes),
    )
    outputs = {"out": ((p.B, p.N), numbers.STORAGE[p.dtype])}
    library = executor.load(build.compile_unit(unit, instrumented=True))
    everything = operands | arrays | {"starts": starts.astype(np.int32)}
    return executor.run(launch, everything, outputs, OPTIONS, library)


def measure(model: str) -> list[Counts]:
    """Count both kernels for one layer of a model; they must agree."""
    experts, top = MODELS[model]
    rng = np.random.default_rng(0)
    chosen = np.argsort(rng.random((TOKENS, experts)), axis=1)[:, :top]
    rhs = np.sort(chosen.ravel()).astype(np.uint32)
    B = len(rhs)
    p = GatherProblem(B, 1, _N, _K, experts, sorted=True)
    w = oracle.random_weights(rng, (experts, _N, _K), p.bits, p.group_size)
    operands = {
        "w": w.words,
        "scales": numbers.encode(w.scales, p.scale_dtype),
        "biases": numbers.encode(w.biases, p.scale_dtype),
        "x": numbers.encode(rng.standard_normal((B, _K)), p.dtype),
    }
    (launch,) = plans.plan_gather(p) or ()
    indices = {"lhs_indices": np.arange(B, dtype=np.uint32), "rhs_indices": rhs}
    outputs = {"out": ((B, 1, _N), numbers.STORAGE[p.dtype])}
    ours = executor.run(launch, operands | indices, outputs, OPTIONS)
    theirs = _theirs(p, operands, np.searchsorted(rhs, np.arange(experts)))
    values = [numbers.decode(o.outputs["out"].ravel(), p.dtype) for o in (ours, theirs)]
    np.testing.assert_allclose(*values, rtol=0.02, atol=0.05)
    return [
        _counts(model, launch.kernel, p, ours),
        _counts(model, "mlx affine_gather_qmm_rhs", p, theirs),
    ]


def table(rows: list[Counts]) -> str:
    lines = [
        "| model | kernel | w read | w lines | x lines | threadgroup bytes / 1000 mul "
        "| barriers / 10⁶ mul | shuffle cycles / 1000 mul | 8×8 cycles / 1000 mul |",
        "| --- | --- |" + " ---: |" * 7,
    ]
    for row in rows:
        model, kernel, *figures = asdict(row).values()
        numbers_ = " | ".join(f"{figure:.2f}" for figure in figures)
        lines.append(f"| {model} | `{kernel}` | {numbers_} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the counts to a file")
    arguments = parser.parse_args()
    rows = [row for model in MODELS for row in measure(model)]
    print(table(rows))
    if arguments.json:
        write(arguments.json, rows)


if __name__ == "__main__":
    main()
