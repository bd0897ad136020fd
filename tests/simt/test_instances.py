"""Every kernel that a plan can name runs, agrees with the oracle, and behaves.

Compiling them all takes two cores half an hour, so only some types and widths are
run unless NIBBLE_ALL_KERNELS is set.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests import simt
from tests.simt import checks, plans, verdicts
from tests.simt.executor import compile_planned

OPTIONS = simt.Options(instrumented=True)
# N is a multiple of no tile. K spans some groups; for qmv_quad it is one.
N, EXPERTS = 37, 3
GROUPS = (5, 1)
# One number of rows for each kernel that is made for one.
ROWS = (1, 2, 3, 4, 6, 8, 13, 37)
# Every type, width and pair of types that checkpoints have.
USUAL = ("f16_f16_b4", "bf16_bf16_b4", "f32_f16_b8", "bf16_f32_b3", "f16_bf16_b6")

Case = tuple[list[simt.Launch], Callable[[], None]]


def cases(unit: str) -> Iterator[Case]:
    """Problems whose plans between them have every kernel of the unit, and others."""
    _, dtype, scale_dtype, bits = unit.rsplit("_", 3)
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    types = (names[dtype], names[scale_dtype], int(bits[1:]))
    formats = itertools.product(GROUPS, (32, 64, 128), (False, True))
    for groups, group_size, symmetric in formats:
        form = (*types, group_size, symmetric)
        K = groups * group_size
        if "gather_" in unit:
            yield from gathered(K, form)
        elif unit.startswith("swiglu"):
            p = simt.Problem(1, N, K, 2, 2, 1, *form)
            launches = simt.plan_swiglu(p) or []
            yield launches, partial(checks.check_swiglu, p, launches, OPTIONS)
        else:
            yield from dense(K, form)


def gathered(K: int, form: tuple) -> Iterator[Case]:
    for M, in_order in itertools.product((1, 8, 13, 37), (False, True)):
        p = simt.GatherProblem(40, M, N, K, EXPERTS, *form, sorted=in_order)
        launches = simt.plan_gather(p) or []
        yield launches, partial(checks.check_gather, p, launches, OPTIONS)
        fused = simt.plan_swiglu(p)
        if fused:
            yield fused, partial(checks.check_swiglu, p, fused, OPTIONS)


def dense(K: int, form: tuple) -> Iterator[Case]:
    for M, transpose in itertools.product(ROWS, (True, False)):
        p = simt.Problem(M, N, K, 1, 1, 1, *form, transpose=transpose)
        for launches in simt.candidates(p):
            yield launches, partial(checks.check_matmul, p, launches, OPTIONS)
    p = simt.Problem(N, 1, K, 1, 1, 1, *form)
    launches = simt.plan_dequantize(p) or []
    yield launches, partial(checks.check_dequantize, p, OPTIONS)


def chosen(unit: str) -> Iterator[Case]:
    """Each kernel of the unit once."""
    seen = set()
    for launches, check in cases(unit):
        name = launches[0].kernel
        if plans.unit_name(name) == unit and name not in seen:
            seen.add(name)
            yield launches, check


def units() -> list[str]:
    every = os.environ.get("NIBBLE_ALL_KERNELS")
    return [
        unit
        for unit in plans.unit_names()
        if every or re.search("|".join(f"_{usual}$" for usual in USUAL), unit)
    ]


@pytest.mark.parametrize("unit", units())
def test_every_instance_runs(unit: str) -> None:
    library = compile_planned(plans.unit(unit), instrumented=True)

    def check_all() -> None:
        for _, check in chosen(unit):
            check()

    verdicts.once(unit, library, check_all)


def test_no_instance_is_left_out() -> None:
    run = {
        launch.kernel
        for unit in plans.unit_names()
        for launches, _ in chosen(unit)
        for launch in launches
    }
    assert run == set(simt.instances())
