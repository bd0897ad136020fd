"""Gradients of scales and biases of each instruction set against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu import programs
from tests.cpu.request import Types
from tests.cpu.runner import Runner
from tests.property.cpu_cases import (
    AFFINE,
    ARM,
    BATCH,
    COLUMNS,
    DTYPE,
    GATHERED,
    GROUPS,
    ROWS,
    X86,
    gathered,
    make,
    matrices,
    start,
)
from tests.support import tolerance

pytestmark = pytest.mark.slow


@pytest.fixture(params=X86 + ARM, scope="module")
def backend(request) -> Runner:
    return start(request.param)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    fmt=AFFINE,
    types=st.builds(Types, DTYPE, DTYPE),
    shape=st.tuples(ROWS, st.one_of(COLUMNS, st.just(193)), GROUPS, st.just(0)),
    batch=BATCH,
    transpose=st.booleans(),
)
def test_gradients_of_scales_and_biases(
    backend, seed, fmt, types, shape, batch, transpose
):
    x, w = make(seed, fmt, types, shape, batch, transpose)
    dy, _ = make(seed + 1, fmt, types, shape, batch, not transpose)
    result = backend.group_gradients(x, dy, w, types, transpose=transpose, batch=batch)
    which = matrices(w, batch)
    exact, allowed = tolerance.group_gradients(x, dy, w, which, transpose)
    tolerance.assert_close(result, exact, allowed)


def test_gradients_do_not_depend_on_the_threads():
    command = programs.native()
    if command is None:
        pytest.skip("only an editable installation has the CPU runner")
    types = Types("bfloat16", "float16")
    x, w = make(0, (4, 64), types, (300, 193, 9, 1))
    dy, _ = make(1, (4, 64), types, (300, 193, 9, 1), transpose=False)
    one, three = (
        Runner(command, threads=count).group_gradients(x, dy, w, types)
        for count in (1, 3)
    )
    np.testing.assert_array_equal(one, three)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    fmt=AFFINE,
    types=st.builds(Types, DTYPE, DTYPE),
    N=COLUMNS,
    groups=st.sampled_from([1, 2, 3]),
    form=GATHERED,
    transpose=st.booleans(),
)
def test_gradients_of_experts(backend, seed, fmt, types, N, groups, form, transpose):
    x, w, lhs, rhs = gathered(seed, fmt, types, N, groups, form, False, transpose)
    B, M, *_ = form
    shape = (M, N, groups, 0)
    dy, _ = make(seed + 1, fmt, types, shape, (B, 1, 1), not transpose)
    result = backend.group_gradients(
        x, dy, w, types, transpose=transpose, indices=(lhs, rhs)
    )
    exact, allowed = tolerance.group_gradients(x[lhs], dy, w, rhs, transpose)
    tolerance.assert_close(result, exact, allowed)
