"""Counts the costs of plans: python -m tests.simt.profile 1 512 512 --bits 4

Counts the memory traffic of y [M, N] = x [M, K] @ w_hat.T and how well requests
coalesce, for each of our plans and for MLX's kernels. Counts are not times: the
README.md beside this file says what they mean.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain

import numpy as np

from tests.support import oracle

from . import cases, mlx_kernels, numbers, plans
from .executor import Options, Outcome, run
from .plans import DTYPES, Problem

_OPTIONS = Options(instrumented=True, redundant_writes=True)
_STEP = 32  # columns of K that MLX's tiles take between barriers


@dataclass(frozen=True)
class Figures:
    """Counts of one plan. The best ratio is 1."""

    plan: str
    threadgroups: int
    threads: int  # of a threadgroup
    read: int  # bytes of device memory, each time they are loaded
    read_over_ideal: float  # each byte once
    flops_per_byte: float  # 2 M N K over what is read and written
    lines_64_over_ideal: float  # of device loads and stores
    lines_128_over_ideal: float
    threadgroup_bytes: int  # read and written
    bank_rounds_over_ideal: float
    barriers_per_step: float  # of a threadgroup, in 32 of K
    matrix_products: int
    shuffles: int  # and reductions


def figures(name: str, p: Problem, outcome: Outcome) -> Figures:
    """Return the figures of an instrumented run."""
    counters = outcome.counters
    # Parameters are few bytes, which the hardware keeps in constant memory.
    arrays = ("w", "scales", "biases", "x", "out")
    device = [m for m in outcome.memory if m["name"] in arrays]
    shared = [m for m in outcome.memory if m["space"] == "threadgroup"]
    groups = counters["threadgroups"]
    read = sum(m["read"] for m in device)
    written = sum(m["written"] for m in device)
    steps = max(1, p.K // _STEP)

    def ratio(over: str, memory: list) -> float:
        ideal = sum(m[f"ideal_{over}"] for m in memory)
        return round(sum(m[over] for m in memory) / ideal, 2) if ideal else 1.0

    unique = sum(m["unique_read"] for m in device)
    return Figures(
        plan=name,
        threadgroups=groups,
        threads=counters["threads"] // groups,
        read=read,
        read_over_ideal=round(read / unique, 2),
        flops_per_byte=round(2 * p.M * p.N * p.K / (read + written), 2),
        lines_64_over_ideal=ratio("lines_64", device),
        lines_128_over_ideal=ratio("lines_128", device),
        threadgroup_bytes=sum(m["read"] + m["written"] for m in shared),
        bank_rounds_over_ideal=ratio("bank_rounds", shared),
        barriers_per_step=round(counters["threadgroup_barriers"] / groups / steps, 2),
        matrix_products=counters["matrix_products"],
        shuffles=sum(
            counters[name] for name in ("shuffles", "fixed_shuffles", "reductions")
        ),
    )


def ours(p: Problem) -> Iterator[Figures]:
    for launch in chain.from_iterable(plans.candidates(p)):
        case = cases.matmul(p, launch)
        outputs = {case.output: (case.shape, numbers.STORAGE[case.dtype])}
        outcome = run(launch, case.operands, outputs, _OPTIONS)
        yield figures(launch.kernel, p, outcome)


def theirs(p: Problem) -> Iterator[Figures]:
    rng = np.random.default_rng(0)
    _, arrays = cases.weights(p, (1, p.N, p.K), rng)
    arrays["x"] = numbers.encode(np.ones((1, p.M, p.K)), p.dtype)
    for kernel, witness in mlx_kernels.WITNESSES.items():
        chosen = witness.experts or witness.offsets
        if mlx_kernels.takes(kernel, p) and not chosen:
            outcome = mlx_kernels.call(kernel, p, arrays, _OPTIONS)
            yield figures(f"mlx {kernel}", p, outcome)


def _show(rows: list[Figures]) -> None:
    from rich.console import Console
    from rich.table import Table

    # Names are too long to head a column of numbers.
    table = Table(box=None, pad_edge=False)
    table.add_column("", min_width=len("threadgroup"))
    for number, row in enumerate(rows, 1):
        print(f"{number:2}  {row.plan}")
        table.add_column(str(number), justify="right", no_wrap=True)
    for name in Figures.__dataclass_fields__:
        if name != "plan":
            values = (str(getattr(row, name)) for row in rows)
            table.add_row(name.replace("_", " "), *values)
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simt.profile", description="Count the costs of plans."
    )
    parser.add_argument("M", type=int, help="rows of x")
    parser.add_argument("N", type=int, help="rows of w")
    parser.add_argument("K", type=int, help="columns of both")
    parser.add_argument("--mode", choices=plans.MODE_NAMES, default="affine")
    parser.add_argument("--bits", type=int, default=4, help="of an affine mode")
    parser.add_argument("--group-size", type=int, default=64, help="the same")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    of_floats = oracle.FLOAT_MODES.get(given.mode)
    p = Problem(
        M=given.M,
        N=given.N,
        K=given.K,
        dtype=given.dtype,
        scale_dtype=plans.SCALES_OF.get(given.mode, given.dtype),
        bits=of_floats[0] if of_floats else given.bits,
        group_size=of_floats[1] if of_floats else given.group_size,
        mode=given.mode,
    )
    rows = [*ours(p), *theirs(p)]
    if given.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _show(rows)


if __name__ == "__main__":
    main()
