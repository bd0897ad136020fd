"""Counts what one threadgroup of a kernel executes, for the model of time.

    python -m bench.kernel_counts      # writes bench/kernel_counts.json; minutes

The SIMT bench runs each kernel at two lengths of K. The costs of a threadgroup are
linear in K, so two lengths give every other one. Those of gradients are linear in the
rows of x, which take the place of K. All in float16; affine codes have groups of 64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests import simt
from tests.simt import (
    build,
    cases,
    executor,
    instructions,
    mlx_cases,
    mlx_kernels,
    numbers,
    plans,
    products,
    source,
)
from tests.support import oracle

FILE = Path(__file__).with_suffix(".json")
# Modes and widths.
FORMATS = (("affine", 4), ("affine", 8), ("mxfp4", 4), ("nvfp4", 4), ("mxfp8", 8))
# Every kernel takes whole steps of these.
LENGTHS = (2048, 4096)
# Rows of x for which a plan names each of our kernels.
ROWS = (1, 2, 3, 4, 5, 6, 8, 16, 32, 64)
# MLX's kernels, and the rows of one threadgroup of them.
THEIRS = {
    "qmv_fast": (1,),
    "qmv_wide": (2, 3, 4, 5),
    "qmm_t": (32,),
    "gather_qmv_fast": (1,),
    "gather_qmm_rhs": (16,),
}
OPTIONS = simt.Options(instrumented=True, redundant_writes=True)


@dataclass(frozen=True)
class Counted:
    """Counts of one threadgroup.

    Attributes:
        fast: Instructions of its simdgroups at full rate.
        slow: The same at a quarter of the rate.
        products: 8x8 products of its simdgroups.
        shuffles: Exchanges between lanes that are one instruction.
        reductions: Sums over a simdgroup.
        lines: Lines of 64 bytes that its loads and stores in device memory touch.
        rounds: Rounds of 32 banks of its accesses to threadgroup memory.
        barriers: Barriers.
    """

    fast: float
    slow: float
    products: float
    shuffles: float
    reductions: float
    lines: float
    rounds: float
    barriers: float


@dataclass(frozen=True)
class Run:
    """One launch of one kernel: operands, the two builds, and how to run it."""

    name: str
    launch: simt.Launch
    operands: dict[str, np.ndarray]
    outputs: dict[str, tuple[tuple[int, ...], np.dtype]]
    plain: source.Unit
    watched: source.Unit

    def counted(self) -> Counted:
        counting = instructions.Counted(self.plain)
        counting.reset()
        arguments = (self.launch, self.operands, self.outputs)
        options = replace(OPTIONS, instrumented=False)
        counters = executor.run(*arguments, options, counting.library).counters
        lanes = counting.instructions()
        path = build.compile_unit(self.watched, instrumented=True)
        memory = executor.run(*arguments, OPTIONS, executor.load(path)).memory
        device = [m for m in memory if m["space"] == "device" and m["name"] in _ARRAYS]
        shared = [m for m in memory if m["space"] == "threadgroup"]
        groups = self.launch.threadgroups
        count = groups[0] * groups[1] * groups[2]
        return Counted(
            fast=lanes["fast"] / 32 / count,
            slow=lanes["slow"] / 32 / count,
            products=counters["matrix_products"] / count,
            shuffles=counters["fixed_shuffles"] / count,
            reductions=counters["reductions"] / count,
            lines=sum(m["lines_64"] for m in device) / count,
            rounds=sum(m["bank_rounds"] for m in shared) / count,
            barriers=counters["threadgroup_barriers"] / count,
        )


_INDICES = ("offsets", "lhs", "rhs", "lhs_indices", "rhs_indices")
_ARRAYS = ("w", "scales", "biases", "x", "dy", "order", "out", *_INDICES)


def form_of(mode: str, bits: int) -> dict[str, Any]:
    """Return the fields of a problem that are its format."""
    floats = mode in oracle.FLOAT_MODES
    return {
        "mode": mode,
        "bits": bits,
        "group_size": oracle.FLOAT_MODES[mode][1] if floats else 64,
        "scale_dtype": plans.SCALES_OF.get(mode, "float16"),
    }


def ours(form: dict[str, Any], K: int, wanted: str) -> Iterator[Run]:
    """Yield a run of each of our wanted kernels, of two threadgroups or more."""
    seen = set()
    for M in ROWS:
        p = simt.Problem(M=M, N=64, K=K, **form)
        for launches in simt.candidates(p):
            launch = launches[0]
            new = launch.kernel not in seen and launch.kernel.startswith(wanted)
            if len(launches) == 1 and new:
                seen.add(launch.kernel)
                yield _ours(cases.matmul(p, launch))
    if (form["mode"], form["bits"]) == ("affine", 4):
        p = simt.Problem(M=K, N=64, K=64, **form)
        for launch in plans.plan_gradient(p) or ():
            if launch.kernel.startswith(wanted):
                yield _ours(cases.gradient(p, launch))
    one = simt.GatherProblem(B=8, N=64, K=K, experts=2, **form)
    # Full tiles of one expert: of 16 rows, and of 32.
    tiles = [replace(one, B=rows, experts=1, sorted=True) for rows in (16, 64)]
    for g in (one, *tiles):
        for launch in plans.plan_gather(g) or ():
            if launch.kernel.startswith(wanted):
                yield _ours(cases.gather(g, launch))


def _ours(case: cases.Case) -> Run:
    text = plans.kernel_source(case.launch.kernel)
    outputs = products.outputs_of(case.launch, case.shape, case.dtype)
    units = (source.translate(text, unroll=True), source.translate(text))
    return Run(case.launch.kernel, case.launch, case.operands, outputs, *units)


def name_of(kernel: str, mode: str, bits: int) -> str:
    """Return the name of one of MLX's kernels in a format."""
    if mode in oracle.FLOAT_MODES:
        return f"mlx fp_{kernel}_{mode}"
    return f"mlx affine_{kernel}_b{bits}"


def theirs(form: dict[str, Any], K: int, wanted: str) -> Iterator[Run]:
    """Yield a run of each of MLX's wanted kernels."""
    mode, bits = form["mode"], form["bits"]
    for family, rows in THEIRS.items():
        kernel = ("fp_" if mode in oracle.FLOAT_MODES else "affine_") + family
        for M in rows:
            rows_of = f"_nv{M}" if len(rows) > 1 else ""
            name = name_of(family + rows_of, mode, bits)
            if not name.startswith(wanted):
                continue
            p = simt.Problem(
                M=M,
                N=64,
                K=K,
                **form,
                batch_size=2,  # products, if each chooses its expert
                batch_count=mlx_cases.EXPERTS,
            )
            case = mlx_cases.case(kernel, p)
            launch, operands = case.launch, case.operands
            if "offsets" in launch.buffers:
                # A full tile of the first expert.
                launch = replace(launch, threadgroups=(2, 1, 1))
                first = np.array([0, M, M], np.int32)
                operands = operands | {"offsets": first}
            instance = {mlx_kernels.instance(kernel, p)}
            units = [mlx_kernels.unit(instance, unroll) for unroll in (True, False)]
            outputs = {"out": (case.shape, numbers.STORAGE[case.dtype])}
            yield Run(name, launch, operands, outputs, *units)


def linear(runs: list[Run]) -> dict[str, Any]:
    """Return a kernel's counts: what is fixed, and what each element of K adds."""
    short, long = (asdict(run.counted()) for run in runs)
    per_k = {n: (long[n] - short[n]) / (LENGTHS[1] - LENGTHS[0]) for n in short}
    launch = runs[0].launch
    return {
        "simdgroups": int(np.prod(launch.threads)) // 32,
        "threadgroup_bytes": launch.declared_bytes,
        "fixed": {n: round(short[n] - LENGTHS[0] * per_k[n], 3) for n in short},
        "per_k": {n: round(per_k[n], 5) for n in short},
    }


def count(
    wanted: str = "", formats: Sequence[tuple[str, int]] = FORMATS
) -> dict[str, dict[str, Any]]:
    """Return the counts of kernels whose names begin with `wanted`, by name."""
    counts = {}
    for mode, bits in formats:
        for kernels in (ours, theirs):
            found = (kernels(form_of(mode, bits), K, wanted) for K in LENGTHS)
            for runs in zip(*found, strict=True):
                counts[runs[0].name] = linear(list(runs))
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.parse_args()
    lines = (f"{json.dumps(n)}: {json.dumps(c)}" for n, c in sorted(count().items()))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"wrote {FILE}")


if __name__ == "__main__":
    main()
