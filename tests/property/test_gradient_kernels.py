"""Gradients of scales and biases on Metal agree with the oracle.

The SIMT bench runs the kernels instrumented: races and accesses out of bounds fail
them.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import simt
from tests.simt import cases, plans

pytestmark = pytest.mark.slow

# (dtype, bits, group_size)
FORMATS = [("float16", 4, 64), ("float32", 3, 32), ("bfloat16", 6, 128)]
OPTIONS = simt.Options(instrumented=True)

# Edges of 8 rows, and of squares of 32.
ROWS = st.sampled_from([1, 2, 7, 8, 9, 17])
COLUMNS = st.sampled_from([1, 4, 31, 32, 33, 36, 65])
GROUPS = st.integers(1, 5)


def planned(p: plans.Problem | plans.GatherProblem) -> simt.Launch:
    (launch,) = plans.plan_gradient(p) or ()
    return launch


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=12)
@given(
    M=ROWS,
    N=COLUMNS,
    groups=GROUPS,
    batch=st.sampled_from([(1, 1, 1), (3, 1, 1), (4, 2, 2), (6, 3, 1)]),
    transpose=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_agree_with_the_oracle(
    fields: tuple[str, int, int],
    M: int,
    N: int,
    groups: int,
    batch: tuple[int, int, int],
    transpose: bool,
    seed: int,
) -> None:
    dtype, bits, group_size = fields
    form = (dtype, dtype, bits, group_size, "affine", transpose)
    p = simt.Problem(M, N, groups * group_size, *batch, *form)
    cases.gradient(p, planned(p), seed).check(OPTIONS)


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=12)
@given(
    M=st.sampled_from([1, 1, 3, 8]),
    N=COLUMNS,
    groups=st.integers(1, 3),
    runs=st.lists(st.sampled_from([0, 0, 1, 7, 8, 9]), min_size=1, max_size=5).filter(
        any
    ),
    transpose=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradients_of_experts_agree_with_the_oracle(
    fields: tuple[str, int, int],
    M: int,
    N: int,
    groups: int,
    runs: list[int],
    transpose: bool,
    seed: int,
) -> None:
    """Experts without rows, in any order."""
    dtype, bits, group_size = fields
    chosen = np.random.default_rng(seed).permutation(
        np.repeat(np.arange(len(runs)), runs)
    )
    form = (dtype, dtype, bits, group_size, "affine", False, transpose)
    K = groups * group_size
    p = simt.GatherProblem(len(chosen), M, N, K, len(runs), *form)
    cases.gradient(p, planned(p), seed, chosen.tolist()).check(OPTIONS)


def test_nan_and_infinity_stay_in_their_rows_of_w() -> None:
    """A row of w past the last, and rows of x past the last, are not multiplied."""
    p = simt.Problem(M=3, N=5, K=64)
    launch = planned(p)
    case = cases.gradient(p, launch)
    case.operands["dy"][0, 1, 2] = np.nan
    written = {"out": ((2, 1, 5, 1), np.dtype(np.float32))}
    out = simt.run(launch, case.operands, written, OPTIONS).outputs["out"]
    bad = np.isnan(out).any(axis=(0, 1, 3))
    assert bad.tolist() == [False, False, True, False, False]


def test_dense_products_take_many_rows_on_neural_accelerators_only() -> None:
    m5 = simt.Device(generation=17, tier="s", cores=40, neural=True)
    many = simt.Problem(M=4096, N=4096, K=4096)
    few = simt.Problem(M=64, N=4096, K=4096)
    assert plans.gradient_left_to_mlx(many, m5)
    assert not plans.gradient_left_to_mlx(few, m5)
    assert not plans.gradient_left_to_mlx(many, simt.Device(generation=16, cores=40))
    # A dense product in TF32 would round float32 numbers.
    exact = simt.Problem(M=4096, N=4096, K=4096, dtype="float32", scale_dtype="float32")
    assert not plans.gradient_left_to_mlx(exact, m5)
    # The dense way multiplies the rows of all experts for each.
    experts = simt.GatherProblem(B=4096, N=4096, K=4096, experts=64)
    assert not plans.gradient_left_to_mlx(experts, m5)
