"""The kernels whose rows choose their weights, and the fused half of an MLP.

Run by the SIMT bench against the oracle, watched for races and strays.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracle, simt, tolerance
from tests.simt.numbers import STORAGE

Fields = tuple[str, str, int, int, bool]
# (dtype, scale_dtype, bits, group_size, symmetric)
FORMATS: list[Fields] = [
    ("float16", "float16", 4, 64, False),
    ("bfloat16", "bfloat16", 8, 32, True),
    ("float32", "float16", 3, 128, False),
]
UP = {"w": "up_w", "scales": "up_scales", "biases": "up_biases"}


def weights_of(
    fields: Fields, shape: tuple[int, int, int], rng: np.random.Generator
) -> tuple[oracle.Weights, dict[str, np.ndarray]]:
    """Weights [experts, N, K] as stored, and the operands that hold them."""
    _, scale_dtype, bits, group_size, symmetric = fields
    w = oracle.random_weights(rng, shape, bits, group_size)
    scales = simt.rounded(w.scales, scale_dtype)
    biases = scales * np.float32(-(2 ** (bits - 1))) if symmetric else w.biases
    w = replace(w, scales=scales, biases=simt.rounded(biases, scale_dtype))
    operands = {
        "w": w.words,
        "scales": simt.encode(w.scales, scale_dtype),
        "biases": simt.encode(w.biases, scale_dtype),
    }
    return w, operands


def run(
    launches: list[simt.Launch] | None,
    operands: dict[str, np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
    seed: int,
) -> np.ndarray:
    assert launches is not None
    (launch,) = launches
    assert launch.kernel in simt.instances()
    options = simt.Options(seed=seed, instrumented=True)
    outputs = {"out": (shape, STORAGE[dtype])}
    outcome = simt.run(launch, operands, outputs, options)
    return simt.decode(outcome.outputs["out"], dtype)


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
    rng = np.random.default_rng(seed)
    w, operands = weights_of(fields, (experts, N, K), rng)
    x = simt.rounded(rng.standard_normal((7, M, K)), dtype)
    lhs = rng.integers(0, len(x), B, dtype=np.uint32)
    rhs = rng.integers(0, experts, B, dtype=np.uint32)
    if in_order:
        rhs.sort()
    operands |= {"x": simt.encode(x, dtype), "lhs_indices": lhs, "rhs_indices": rhs}
    launches = simt.plan_gather(p)
    y = run(launches, operands, (B, M, N), dtype, seed)

    exact = oracle.matmul(x[lhs], w.dequantize()[rhs])
    magnitude = oracle.matmul(abs(x[lhs]), w.magnitude()[rhs])
    tiled = launches is not None and "_bk" in launches[0].kernel
    held = dtype if tiled else "float32"
    allowed = tolerance.bound(exact, magnitude, K, dtype, held)
    tolerance.assert_close(y, exact, allowed, str(p))


def swiglu_oracle(
    x: np.ndarray, gate: oracle.Weights, up: oracle.Weights, which: np.ndarray, dtype
) -> tuple[np.ndarray, np.ndarray]:
    """silu(g) * u, and how far from it a result may lie."""
    g = oracle.matmul(x, gate.dequantize()[which])
    u = oracle.matmul(x, up.dequantize()[which])
    K = x.shape[-1]
    off_g, off_u = (
        tolerance.bound(
            exact, oracle.matmul(abs(x), w.magnitude()[which]), K, "float32"
        )
        for exact, w in ((g, gate), (u, up))
    )
    silu = g / (1 + np.exp(-g))
    # |silu'| < 1.1; the four roundings of silu and of the product are each u.
    roundings = 4 * tolerance.UNIT_ROUNDOFF["float32"] * abs(silu * u)
    off = 1.1 * off_g * (abs(u) + off_u) + abs(silu) * off_u + roundings
    exact = silu * u
    off += tolerance.UNIT_ROUNDOFF[dtype] * (abs(exact) + off)
    return exact, off + tolerance.UNDERFLOW[dtype]


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
    dtype, scale_dtype, bits, group_size, symmetric = fields
    K = groups * group_size
    rng = np.random.default_rng(seed)
    experts = 3
    gate, operands = weights_of(fields, (experts, N, K), rng)
    up, up_operands = weights_of(fields, (experts, N, K), rng)
    operands |= {UP[name]: array for name, array in up_operands.items()}
    x = simt.rounded(rng.standard_normal((B, 1, K)), dtype)
    operands["x"] = simt.encode(x, dtype)
    form = (dtype, scale_dtype, bits, group_size, symmetric)
    if gathered:
        lhs = rng.integers(0, B, B, dtype=np.uint32)
        which = rng.integers(0, experts, B, dtype=np.uint32)
        operands |= {"lhs_indices": lhs, "rhs_indices": which}
        problem = simt.GatherProblem(B, 1, N, K, experts, *form)
        x = x[lhs]
    else:
        problem = simt.Problem(1, N, K, B, experts, 1, *form)
        which = np.arange(B) % experts
    launches = simt.plan_swiglu(problem)
    y = run(launches, operands, (B, 1, N), dtype, seed)
    exact, allowed = swiglu_oracle(x, gate, up, which, dtype)
    tolerance.assert_close(y, exact, allowed, str(problem))
