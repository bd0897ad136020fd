"""Gathered products and the fused half of an MLP agree with the oracle.

The SIMT bench runs them instrumented: races and accesses out of bounds fail them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import simt
from tests.simt import cases

pytestmark = pytest.mark.slow

Fields = tuple[str, str, int, int, str]
# (dtype, scale_dtype, bits, group_size, mode)
FORMATS: list[Fields] = [
    ("float16", "float16", 4, 64, "affine"),
    ("bfloat16", "bfloat16", 8, 32, "symmetric"),
    ("float32", "float16", 3, 128, "affine"),
    ("bfloat16", "e8m0", 4, 32, "mxfp4"),
]


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=10)
@given(
    M=st.sampled_from([1, 1, 5]),
    B=st.sampled_from([1, 3, 17, 70]),
    N=st.sampled_from([1, 9, 33]),
    groups=st.integers(1, 4),
    experts=st.integers(1, 5),
    in_order=st.booleans(),
    transpose=st.booleans(),
    invariant=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_gathered_products_agree_with_the_oracle(
    fields: Fields,
    M: int,
    B: int,
    N: int,
    groups: int,
    experts: int,
    in_order: bool,
    transpose: bool,
    invariant: bool,
    seed: int,
) -> None:
    dtype, scale_dtype, bits, group_size, mode = fields
    K = groups * max(group_size, 32)
    form = (dtype, scale_dtype, bits, group_size, mode)
    p = simt.GatherProblem(B, M, N, K, experts, *form, in_order, transpose, invariant)
    (launch,) = simt.plan_gather(p) or ()
    case = cases.gather(p, launch, seed)
    case.check(simt.Options(seed=seed, instrumented=True))


@pytest.mark.parametrize("transpose", [True, False])
@settings(max_examples=12)
@given(
    runs=st.lists(
        st.sampled_from([0, 0, 1, 7, 15, 16, 17, 32, 33, 90]), min_size=1, max_size=9
    ).filter(lambda runs: sum(runs) >= max(16, 4 * len(runs))),
    seed=st.integers(0, 2**32 - 1),
)
def test_tiles_cover_experts_of_any_size(
    transpose: bool, runs: list[int], seed: int
) -> None:
    """Experts without rows, and runs that end where a tile ends."""
    chosen = np.repeat(np.arange(len(runs)), runs).tolist()
    p = simt.GatherProblem(
        len(chosen), 1, 9, 64, len(runs), sorted=True, transpose=transpose
    )
    (launch,) = simt.plan_gather(p) or ()
    assert launch.kernel.startswith("gather_qmm_" if transpose else "gather_sorted_")
    case = cases.gather(p, launch, seed, chosen)
    case.check(simt.Options(seed=seed, instrumented=True))


@pytest.mark.parametrize("transpose", [True, False])
def test_batch_invariant_rows_have_the_same_bits_in_any_batch(
    transpose: bool,
) -> None:
    p = simt.GatherProblem(
        B=40, N=40, K=576, sorted=True, transpose=transpose, batch_invariant=True
    )
    (launch,) = simt.plan_gather(p) or ()
    case = cases.gather(p, launch)
    together = outputs(case, launch, case.operands)[:, 0]
    # The same rows, in products of M = 5 rows each.
    x = case.operands["x"].reshape(8, 5, -1)
    for expert in range(p.experts):
        some = replace(p, B=8, M=5, sorted=False)
        (launch,) = simt.plan_gather(some) or ()
        operands = case.operands | {
            "x": x,
            "lhs_indices": np.arange(8, dtype=np.uint32),
            "rhs_indices": np.full(8, expert, dtype=np.uint32),
        }
        rows = outputs(case, launch, operands).reshape(40, -1)
        chosen = case.operands["rhs_indices"] == expert
        lhs = case.operands["lhs_indices"][chosen]
        np.testing.assert_array_equal(together[chosen], rows[lhs])


def outputs(
    case: cases.Case, launch: simt.Launch, operands: dict[str, np.ndarray]
) -> np.ndarray:
    B, M = len(operands["lhs_indices"]), operands["x"].shape[1]
    shape = (B, M, case.exact.shape[-1])
    written = {"out": (shape, operands["x"].dtype)}
    return simt.run(launch, operands, written).outputs["out"]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=5)
@given(
    B=st.sampled_from([1, 2, 6]),
    N=st.sampled_from([1, 9, 33]),
    groups=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_swiglu_agrees_with_the_oracle(
    fields: Fields, gathered: bool, B: int, N: int, groups: int, seed: int
) -> None:
    experts, K = 3, groups * max(fields[3], 32)
    problem = (
        simt.GatherProblem(B, 1, N, K, experts, *fields)
        if gathered
        else simt.Problem(1, N, K, B, experts, 1, *fields)
    )
    (launch,) = simt.plan_swiglu(problem) or ()
    case = cases.swiglu(problem, launch, seed)
    case.check(simt.Options(seed=seed, instrumented=True))
