"""Experts with many rows beside experts with few, on each instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cpu.request import Types
from tests.cpu.runner import Runner
from tests.property.cpu_cases import ARM, X86, make, rounding, start
from tests.support import oracle, tolerance

pytestmark = pytest.mark.slow


@pytest.fixture(params=X86 + ARM, scope="module")
def backend(request) -> Runner:
    return start(request.param)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("mode", ["mxfp4", "nvfp4"])
@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32),
    rows=st.sampled_from([2, 5, 7, 16, 17, 33, 50]),
    N=st.sampled_from([1, 16, 33, 64]),
    groups=st.integers(1, 12),
    packed=st.booleans(),
)
def test_rows_of_a_busy_expert_have_the_bits_of_a_row_alone(
    backend, mode, int8, seed, rows, N, groups, packed
):
    """With one row for an expert on average, codes of E2M1 stay integers.

    So tiles (AMX) multiply them for an expert with many rows, and vectors for the
    others.
    """
    types = Types("float16", "float32")
    x, w = make(seed, mode, types, (1, N, groups, 0), (rows, 1, 1))
    experts = replace(
        w,
        words=np.repeat(w.words, rows, axis=0),
        scales=np.repeat(w.scales, rows, axis=0),
    )
    of_x, same = np.arange(rows, dtype=np.uint32), np.zeros(rows, np.uint32)
    busy, alone = (
        backend.gather(x, experts, of_x, rhs, types, int8=int8, packed=packed)
        for rhs in (same, of_x)
    )
    np.testing.assert_array_equal(busy, alone)
    exact = oracle.matmul(x, w.dequantize()[same])
    magnitude = oracle.matmul(abs(x), w.magnitude()[same])
    allowed = tolerance.bound(exact, magnitude, x.shape[-1], types.dtype)
    allowed += rounding(backend, x, w, same, types, int8)
    tolerance.assert_close(busy, exact, allowed)
