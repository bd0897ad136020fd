"""Every kernel that a plan can name agrees with the oracle on the SIMT bench.

The runs are instrumented: a race, an access out of bounds or a read of uninitialised
memory fails them. They show nothing about speed or about Apple hardware.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import simt
from tests.simt import cases, products

pytestmark = pytest.mark.slow

# To compile a kernel takes a second, so these are not all combinations. They cover
# every type, width, group size and symmetry, and the pairs of types in checkpoints.
# (dtype, scale_dtype, bits, group_size, mode)
FORMATS = [
    ("float16", "float16", 4, 64, "affine"),
    ("bfloat16", "bfloat16", 4, 32, "symmetric"),
    ("float32", "bfloat16", 8, 128, "affine"),
    ("bfloat16", "float16", 3, 32, "affine"),
    ("float16", "float32", 6, 64, "affine"),
    ("float32", "float32", 2, 128, "symmetric"),
    ("bfloat16", "bfloat16", 5, 64, "affine"),
    ("float16", "float16", 8, 32, "symmetric"),
    ("float32", "float16", 1, 32, "affine"),
    ("bfloat16", "e8m0", 4, 32, "mxfp4"),
    ("float16", "e4m3", 4, 16, "nvfp4"),
]

# One number for each kernel that the planner chooses by rows, off the edges of tiles.
ROWS = st.sampled_from([1, 2, 5, 16, 33, 65])
COLUMNS = st.one_of(st.integers(1, 9), st.sampled_from([15, 31, 32, 33, 64, 65, 71]))
BATCHES = st.sampled_from([(1, 1, 1), (1, 1, 1), (2, 2, 1), (4, 2, 2), (3, 1, 1)])


def format_id(fields: tuple[str, str, int, int, str]) -> str:
    dtype, scale_dtype, bits, group_size, mode = fields
    name = f"{dtype}-{scale_dtype}-b{bits}-g{group_size}"
    return name if mode == "affine" else f"{name}-{mode}"


def problem_of(fields: tuple[str, str, int, int, str]) -> simt.Problem:
    dtype, scale_dtype, bits, group_size, mode = fields
    return simt.Problem(
        dtype=dtype,
        scale_dtype=scale_dtype,
        bits=bits,
        group_size=group_size,
        mode=mode,
    )


def watched(seed: int) -> simt.Options:
    return simt.Options(seed=seed, instrumented=True)


@pytest.mark.parametrize("fields", FORMATS, ids=format_id)
@settings(max_examples=15)
@given(
    M=ROWS,
    N=COLUMNS,
    groups=st.integers(1, 9),
    batch=BATCHES,
    epilogue=st.tuples(st.booleans(), st.booleans()),
    half_tiles=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_agree_with_the_oracle(
    fields: tuple[str, str, int, int, str],
    M: int,
    N: int,
    groups: int,
    batch: tuple[int, int, int],
    epilogue: tuple[bool, bool],
    half_tiles: bool,
    seed: int,
) -> None:
    p = problem_of(fields)
    size, count, repeat = batch
    p = replace(p, M=M, N=N, K=groups * max(p.group_size, 32))
    p = replace(p, bias=epilogue[0], residual=epilogue[1], half_tiles=half_tiles)
    p = replace(p, batch_size=size, batch_count=count, batch_repeat=repeat)
    plans = simt.candidates(p)
    assert plans, f"no kernel of ours computes {p}"
    for launch in chain.from_iterable(plans):
        cases.matmul(p, launch, seed).check(watched(seed))


@pytest.mark.parametrize("fields", FORMATS, ids=format_id)
@settings(max_examples=6)
@given(
    M=st.sampled_from([1, 3, 33]),
    N=COLUMNS,
    groups=st.integers(1, 5),
    batch=BATCHES,
    seed=st.integers(0, 2**32 - 1),
)
def test_products_that_are_not_transposed_agree_with_the_oracle(
    fields: tuple[str, str, int, int, str],
    M: int,
    N: int,
    groups: int,
    batch: tuple[int, int, int],
    seed: int,
) -> None:
    p = replace(problem_of(fields), M=M, N=N, transpose=False)
    size, count, repeat = batch
    p = replace(p, K=groups * max(p.group_size, 32))
    p = replace(p, batch_size=size, batch_count=count, batch_repeat=repeat)
    for (launch,) in simt.candidates(p):
        cases.matmul(p, launch, seed).check(watched(seed))


@pytest.mark.parametrize("M", [*range(1, 10), 15, 17, 31, 32, 34])
def test_every_number_of_rows_where_k_takes_many_steps(M: int) -> None:
    p = problem_of(FORMATS[0])
    # More than two steps of the widest kernel, and not a multiple of a step.
    p = replace(p, M=M, N=11, K=2304 + max(p.group_size, 32))
    for launch in chain.from_iterable(simt.candidates(p)):
        cases.matmul(p, launch, M).check(watched(M))


def split_of(p: simt.Problem) -> list[simt.Launch]:
    """Return the plan that splits K, in two launches."""
    (plan,) = (one for one in simt.candidates(p) if len(one) == 2)
    return plan


@pytest.mark.parametrize("fields", FORMATS, ids=format_id)
@settings(max_examples=4)
@given(
    M=st.sampled_from([33, 63, 64, 100]),
    N=st.sampled_from([1, 31, 64, 65, 71]),
    groups=st.integers(17, 40),
    epilogue=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_with_k_split_agree_with_the_oracle(
    fields: tuple[str, str, int, int, str],
    M: int,
    N: int,
    groups: int,
    epilogue: tuple[bool, bool],
    seed: int,
) -> None:
    p = problem_of(fields)
    p = replace(p, M=M, N=N, K=groups * max(p.group_size, 32))
    p = replace(p, bias=epilogue[0], residual=epilogue[1])
    for launch in split_of(p):
        cases.matmul(p, launch, seed).check(watched(seed))


def test_a_split_k_adds_up_in_the_same_order_for_any_order_of_threads() -> None:
    p = replace(problem_of(FORMATS[0]), M=40, N=70, K=2112)
    launches = split_of(p)
    operands = cases.matmul(p, launches[0]).operands
    answers = []
    for seed in (0, 1):
        given = dict(operands)
        for launch in launches:
            outputs = products.outputs_of(launch, (1, p.M, p.N), p.dtype)
            given |= simt.run(launch, given, outputs, watched(seed)).outputs
        answers.append(given["out"])
    np.testing.assert_array_equal(*answers)
    # The last bits of a row depend on the split, so invariant products never split K.
    assert all(
        len(one) == 1 for one in simt.candidates(replace(p, batch_invariant=True))
    )


def test_batch_invariant_rows_have_the_same_bits_in_any_batch() -> None:
    p = replace(problem_of(FORMATS[0]), N=40, K=1216, batch_invariant=True)
    (launch,) = simt.candidates(replace(p, M=33))[0]
    whole = cases.matmul(replace(p, M=33), launch)
    rows = run_rows(whole, launch, slice(0, 33))
    for first, last in [(0, 1), (32, 33), (3, 11), (5, 19)]:
        (launch,) = simt.candidates(replace(p, M=last - first))[0]
        part = run_rows(whole, launch, slice(first, last))
        np.testing.assert_array_equal(part, rows[:, first:last])


def run_rows(case: cases.Case, launch: simt.Launch, rows: slice) -> np.ndarray:
    """Return the product of some rows of a case's x, by another launch."""
    x = np.ascontiguousarray(case.operands["x"][:, rows])
    shape = (1, x.shape[1], case.exact.shape[-1])
    outputs = {"out": (shape, x.dtype)}
    return simt.run(launch, case.operands | {"x": x}, outputs).outputs["out"]


@pytest.mark.parametrize("fields", FORMATS, ids=format_id)
@settings(max_examples=5)
@given(
    rows=st.integers(1, 5), groups=st.integers(1, 40), seed=st.integers(0, 2**32 - 1)
)
def test_dequantize_agrees_with_the_oracle(
    fields: tuple[str, str, int, int, str], rows: int, groups: int, seed: int
) -> None:
    p = problem_of(fields)
    p = replace(p, M=rows, K=groups * max(p.group_size, 32))
    (launch,) = simt.plan_dequantize(p) or ()
    cases.dequantize(p, launch, seed).check(watched(seed))
