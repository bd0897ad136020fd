"""The kernels whose rows choose their weights, and the fused half of an MLP.

Run by the SIMT bench against the oracle, watched for races and strays.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import simt
from tests.simt import cases

Fields = tuple[str, str, int, int, bool]
# (dtype, scale_dtype, bits, group_size, symmetric)
FORMATS: list[Fields] = [
    ("float16", "float16", 4, 64, False),
    ("bfloat16", "bfloat16", 8, 32, True),
    ("float32", "float16", 3, 128, False),
]


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=10)
@given(
    M=st.sampled_from([1, 1, 5]),
    B=st.sampled_from([1, 3, 17, 40]),
    N=st.sampled_from([1, 9, 33]),
    groups=st.integers(1, 4),
    experts=st.integers(1, 5),
    in_order=st.booleans(),
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
    seed: int,
) -> None:
    dtype, scale_dtype, bits, group_size, symmetric = fields
    K = groups * group_size
    p = simt.GatherProblem(
        B, M, N, K, experts, dtype, scale_dtype, bits, group_size, symmetric, in_order
    )
    (launch,) = simt.plan_gather(p) or ()
    case = cases.gather(p, launch, seed)
    case.check(simt.Options(seed=seed, instrumented=True))


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
    experts, K = 3, groups * fields[3]
    problem = (
        simt.GatherProblem(B, 1, N, K, experts, *fields)
        if gathered
        else simt.Problem(1, N, K, B, experts, 1, *fields)
    )
    (launch,) = simt.plan_swiglu(problem) or ()
    case = cases.swiglu(problem, launch, seed)
    case.check(simt.Options(seed=seed, instrumented=True))
