"""Every kernel that a plan can name runs, agrees with the oracle, and behaves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from tests import oracle, simt, tolerance
from tests.simt import plans, verdicts
from tests.simt.executor import compile_planned

# N is a multiple of no tile; K spans three groups.
N, GROUPS = 37, 3
# One number of rows for each kernel that is made for one.
ROWS = (1, 2, 3, 4, 6, 8, 13, 37)


def problems(unit: str) -> Iterator[simt.Problem]:
    _, dtype, scale_dtype, bits = unit.rsplit("_", 3)
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    for M, group_size, symmetric in itertools.product(ROWS, (32, 64, 128), (0, 1)):
        yield simt.Problem(
            M=M,
            N=N,
            K=GROUPS * group_size,
            dtype=names[dtype],
            scale_dtype=names[scale_dtype],
            bits=int(bits[1:]),
            group_size=group_size,
            symmetric=bool(symmetric),
        )


def cases(unit: str) -> Iterator[tuple[simt.Problem, list[simt.Launch]]]:
    """Each plan that starts with a kernel of the unit, at the first problem it fits."""
    seen = set()
    for problem in problems(unit):
        found = [*simt.candidates(problem), simt.plan_dequantize(problem)]
        for launches in filter(None, found):
            names = tuple(launch.kernel for launch in launches)
            if plans.unit_name(names[0]) == unit and names not in seen:
                seen.add(names)
                yield problem, launches


def check(
    problem: simt.Problem, launches: list[simt.Launch], options: simt.Options
) -> None:
    rng = np.random.default_rng(0)
    dequantize = "x" not in launches[0].buffers
    rows = problem.M if dequantize else N
    shape = (rows, problem.K)
    w = oracle.random_weights(rng, shape, problem.bits, problem.group_size)
    scales = simt.rounded(w.scales, problem.scale_dtype)
    biases = simt.rounded(w.biases, problem.scale_dtype)
    if problem.symmetric:
        biases = scales * np.float32(-(2 ** (problem.bits - 1)))
    w = oracle.Weights(w.words, scales, biases, w.bits, w.group_size)
    label = f"{launches[0].kernel} {problem}"
    if dequantize:
        result = simt.dequantize(problem, w.words, scales, biases, options)
        exact, magnitude, terms = w.dequantize(), w.magnitude(), 1
        inner = "float32"
    else:
        x = rng.standard_normal((problem.M, problem.K)).astype(np.float32)
        x = simt.rounded(x, problem.dtype)
        result = simt.matmul(problem, w.words, scales, biases, x, options, launches)[0]
        exact = oracle.matmul(x, w.dequantize())
        magnitude = oracle.matmul(abs(x), w.magnitude())
        terms = problem.K
        # Tiles hold w_hat in the type of x.
        inner = problem.dtype if launches[0].threadgroup_bytes else "float32"
    allowed = tolerance.bound(exact, magnitude, terms, problem.dtype, inner)
    tolerance.assert_close(result, exact, allowed, label)


@pytest.mark.parametrize("unit", plans.unit_names())
def test_every_instance_runs(unit: str) -> None:
    library = compile_planned(plans.unit(unit), instrumented=True)

    def check_all() -> None:
        for problem, launches in cases(unit):
            check(problem, launches, simt.Options(instrumented=True))

    verdicts.once(unit, library, check_all)


def test_no_instance_is_left_out() -> None:
    run = {
        launch.kernel
        for unit in plans.unit_names()
        for _, launches in cases(unit)
        for launch in launches
    }
    assert run == set(simt.instances())
