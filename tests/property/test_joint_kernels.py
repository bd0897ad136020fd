"""Joint products of one x agree with the oracle on the SIMT bench."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import simt
from tests.simt import cases

pytestmark = pytest.mark.slow

FORMATS = [
    ("float16", "float16", 4, 64, "affine"),
    ("bfloat16", "bfloat16", 8, 32, "symmetric"),
    ("float32", "float16", 3, 128, "affine"),
]
COLUMNS = st.lists(st.integers(1, 33), min_size=2, max_size=3)


def products(fields, M, groups, columns, biased):
    dtype, scale_dtype, bits, group_size, mode = fields
    p = simt.Problem(
        M=M,
        # More than 128, the largest K of quads.
        K=128 + groups * max(group_size, 32),
        dtype=dtype,
        scale_dtype=scale_dtype,
        bits=bits,
        group_size=group_size,
        mode=mode,
    )
    return [replace(p, N=N, bias=bool(biased >> i & 1)) for i, N in enumerate(columns)]


@pytest.mark.parametrize("fields", FORMATS, ids=str)
@settings(max_examples=10)
@given(
    M=st.one_of(st.integers(1, 5), st.integers(6, 33)),
    groups=st.integers(1, 4),
    columns=COLUMNS,
    biased=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 9),
)
def test_joint_products_agree_with_the_oracle(fields, M, groups, columns, biased, seed):
    several = products(fields, M, groups, columns, biased)
    (launch,) = simt.plan_joint(several) or ()
    case = cases.joint(several, launch, seed)
    case.check(simt.Options(seed=seed, instrumented=True))


@pytest.mark.parametrize("M", [1, 3, 5, 17])
def test_joint_products_have_the_same_bits_as_single_products(M, rng):
    several = products(FORMATS[0], M, 3, [19, 8, 33], 2)
    (launch,) = simt.plan_joint(several) or ()
    case = cases.joint(several, launch)
    shapes = {
        f"out{i or ''}": ((1, M, p.N), np.dtype(np.uint16))
        for i, p in enumerate(several)
    }
    joint = simt.run(launch, case.operands, shapes).outputs
    for i, p in enumerate(several):
        (alone,) = simt.plan_matmul(p) or ()
        end = str(i or "")
        operands = {
            name: case.operands[f"{name}{end}" if name != "x" else "x"]
            for name in set(alone.buffers) - {"out"}
        }
        out = {"out": ((1, M, p.N), np.dtype(np.uint16))}
        y = simt.run(alone, operands, out).outputs["out"]
        assert np.array_equal(y, joint[f"out{end}"])
