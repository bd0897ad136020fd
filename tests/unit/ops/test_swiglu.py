"""ops.swiglu and ops.gather_swiglu: two products and SwiGLU as one node."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import _native, ops
from mlx_nibble.formats import FLOAT_MODES, SUPPORTED_BITS
from mlx_nibble.numerics import LAMBDA, UNIT_ROUNDOFF
from tests.support import oracle, tolerance
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx

TOLERANCE = dict(rtol=1e-4, atol=1e-3)


def make(rng, w_shape, bits=4, group_size=64, scale_dtype="float16"):
    w = oracle.random_weights(rng, w_shape, bits, group_size)
    return weights_to_mlx(w, scale_dtype)


def check(y, x, gate, up, which, lhs=None, int8=False, in_steps=False):
    name = str(y.dtype).removeprefix("mlx.core.")
    x = to_numpy(x).reshape(-1, *x.shape[-2:])
    x = x if lhs is None else x[lhs]
    activations = tolerance.integers(name, int8)
    exact, allowed = tolerance.swiglu(x, gate, up, which, name, activations, in_steps)
    tolerance.assert_close(
        to_numpy(y), exact.reshape(y.shape), allowed.reshape(y.shape)
    )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    M=st.integers(1, 40),
    N=st.sampled_from([1, 9, 33, 70]),
    groups=st.integers(1, 5),
    bits=st.sampled_from(SUPPORTED_BITS),
    dtype=st.sampled_from(list(DTYPES)),
    scale_dtype=st.sampled_from(list(DTYPES)),
    activations=st.sampled_from([None, "int8"]),
)
def test_it_agrees_with_the_oracle(
    seed, M, N, groups, bits, dtype, scale_dtype, activations
):
    rng = np.random.default_rng(seed)
    gate, g = make(rng, (N, 32 * groups), bits, 32, scale_dtype)
    up, u = make(rng, (N, 32 * groups), bits, 32, scale_dtype)
    x = to_mlx(rng.standard_normal((M, 32 * groups)), dtype)
    y = ops.swiglu(x, gate, up, 32, bits, activations=activations)
    assert (y.shape, y.dtype) == ((M, N), DTYPES[dtype])
    all_of = np.zeros(1, int)
    g, u = (
        oracle.Weights(w.words[None], w.scales[None], w.biases[None], bits, 32)
        for w in (g, u)
    )
    in_steps = tolerance.swiglu_in_steps(dtype, scale_dtype, M)
    check(y, x, g, u, all_of, int8=activations is not None, in_steps=in_steps)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    B=st.sampled_from([1, 3, 16, 70]),
    M=st.sampled_from([1, 1, 7]),
    N=st.sampled_from([1, 9, 33]),
    experts=st.integers(1, 20),
    dtype=st.sampled_from(list(DTYPES)),
    in_order=st.booleans(),
)
def test_gathered_it_agrees_with_the_oracle(seed, B, M, N, experts, dtype, in_order):
    rng = np.random.default_rng(seed)
    gate, g = make(rng, (experts, N, 128))
    up, u = make(rng, (experts, N, 128))
    x = to_mlx(rng.standard_normal((5, M, 128)), dtype)
    lhs, rhs = rng.integers(0, 5, B), rng.integers(0, experts, B)
    rhs = np.sort(rhs) if in_order else rhs
    y = ops.gather_swiglu(
        x, gate, up, mx.array(lhs), mx.array(rhs), sorted_indices=in_order
    )
    assert (y.shape, y.dtype) == ((B, M, N), DTYPES[dtype])
    in_steps = tolerance.swiglu_in_steps(dtype, "float16", M)
    check(y, x, g, u, rhs, lhs, in_steps=in_steps)


def composed(x, gate, up, **form):
    product = ops.gather_qmm if "rhs_indices" in form else ops.quantized_matmul
    g = product(x, *gate, **form)
    # MLX's compiled functions of no elements divide by zero on CUDA.
    return nn.silu(g) * product(x, *up, **form) if g.size else g


def pair(*shape, bits=4):
    gate, up = (mx.quantize(mx.random.normal(shape), 64, bits) for _ in range(2))
    return gate, up


@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((64,), (48, 64)),
        ((64,), (3, 48, 64)),
        ((2, 5, 64), (48, 64)),
        ((2, 64), (3, 48, 64)),
        ((2, 3, 1, 64), (3, 48, 64)),
        ((2, 3, 4, 2, 64), (2, 1, 4, 48, 64)),
        ((0, 64), (48, 64)),
    ],
)
def test_batches_broadcast_as_those_of_the_products(x, w):
    gate, up = pair(*w)
    x = mx.random.normal(x)
    y, two = ops.swiglu(x, gate, up), composed(x, gate, up)
    assert y.shape == two.shape
    assert mx.allclose(y, two, **TOLERANCE)


def test_matrices_that_are_not_alike_are_two_products():
    x = mx.random.normal((2, 64))
    gate, _ = pair(48, 64)
    _, up = pair(1, 64)
    assert mx.allclose(ops.swiglu(x, gate, up), composed(x, gate, up), **TOLERANCE)


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("gathered", [False, True])
def test_the_modes_of_floats(mode, gathered):
    gate, up = (
        (*mx.quantize(mx.random.normal((3, 64, 128)), mode=mode), None)
        for _ in range(2)
    )
    if gathered:
        x, rhs = mx.random.normal((4, 1, 128)), mx.array([2, 0, 1, 2])
        products = (
            mx.gather_qmm(x, w, s, rhs_indices=rhs, mode=mode) for w, s, _ in (gate, up)
        )
        y = ops.gather_swiglu(x, gate, up, rhs_indices=rhs, mode=mode)
    else:
        x = mx.random.normal((3, 2, 128))
        products = (mx.quantized_matmul(x, w, s, mode=mode) for w, s, _ in (gate, up))
        y = ops.swiglu(x, gate, up, mode=mode)
    g, u = products
    assert mx.allclose(y, nn.silu(g) * u, rtol=1e-4, atol=1e-3)


@pytest.mark.skipif(
    tolerance.on_cuda(), reason="kernels for CUDA read all biases (docs/internals)"
)
def test_symmetric_biases_are_not_read():
    (gw, gs, _), (uw, us, _) = pair(48, 64)
    nothing = mx.full(gs.shape, mx.nan)
    x = mx.random.normal((2, 64))
    y = ops.swiglu(x, (gw, gs, nothing), (uw, us, nothing), symmetric=True)
    assert mx.array_equal(y, ops.swiglu(x, (gw, gs, -8 * gs), (uw, us, -8 * us)))


@pytest.mark.parametrize("gathered", [False, True])
def test_gradients_are_those_of_the_composition(gathered):
    gate, up = pair(4, 48, 64) if gathered else pair(48, 64)
    x = mx.random.normal((3, 1, 64))
    form = {"rhs_indices": mx.array([2, 0, 2])} if gathered else {}
    fused = ops.gather_swiglu if gathered else ops.swiglu

    def gradients(op):
        def loss(x, gate_scales, up_biases):
            g = (gate[0], gate_scales, gate[2])
            u = (up[0], up[1], up_biases)
            return (op(x, g, u, **form) ** 2).sum()

        return mx.grad(loss, argnums=(0, 1, 2))(x, gate[1], up[2])

    for a, b in zip(gradients(fused), gradients(composed), strict=True):
        assert a.shape == b.shape
        assert mx.allclose(a, b, rtol=1e-3, atol=1e-3 * mx.abs(b).max().item())


def test_vmap_and_tangents_are_those_of_the_composition():
    gate, up = pair(48, 64)
    x, t = mx.random.normal((3, 2, 64)), mx.random.normal((3, 2, 64))
    mapped = mx.vmap(lambda x: ops.swiglu(x, gate, up))(x)
    assert mx.allclose(mapped, ops.swiglu(x, gate, up), **TOLERANCE)
    ours, theirs = (
        mx.jvp(lambda x, op=op: op(x, gate, up), [x], [t])[1][0]
        for op in (ops.swiglu, composed)
    )
    assert mx.allclose(ours, theirs, **TOLERANCE)


@pytest.mark.parametrize("shapeless", [False, True])
def test_compile(shapeless):
    gate, up = pair(48, 64)
    mx.eval(gate, up)
    compiled = mx.compile(lambda x: ops.swiglu(x + 1, gate, up), shapeless=shapeless)
    for rows in (1, 3, 40):
        x = mx.random.normal((rows, 64))
        assert mx.allclose(compiled(x), ops.swiglu(x + 1, gate, up), **TOLERANCE)


def test_bad_input_is_one_clear_error():
    gate, up = pair(48, 64)
    with pytest.raises(ValueError, match=r"\[swiglu\] the last dimension of x"):
        ops.swiglu(mx.zeros((2, 65)), gate, up)
    with pytest.raises(ValueError, match=r"\[swiglu\] scales of shape .* required"):
        ops.swiglu(mx.zeros((2, 64)), gate, up, 32)
    with pytest.raises(ValueError, match=r"\[gather_swiglu\] activations must be"):
        ops.gather_swiglu(mx.zeros((2, 64)), gate, up, activations="int4")


def test_without_the_extension_it_is_mlx_own(monkeypatch):
    # MLX's own products for CUDA are wrong in float32, and for shorter rows.
    K = 512
    gate, up = pair(4, 48, K)
    x = mx.random.normal((3, 1, K))
    if tolerance.on_cuda():
        x = x.astype(mx.float16)
        gate, up = ((w, *(a.astype(x.dtype) for a in rest)) for w, *rest in (gate, up))
    rhs = mx.array([0, 3, 1])
    ours = ops.gather_swiglu(x, gate, up, rhs_indices=rhs)
    one = ops.swiglu(x, *[tuple(a[0] for a in q) for q in (gate, up)])
    monkeypatch.setattr(_native, "ext", None)
    near = TOLERANCE
    if tolerance.on_cuda():  # MLX sums in float16: a random walk of K roundings
        u = UNIT_ROUNDOFF["float16"] * LAMBDA * K**0.5
        near = dict(rtol=0, atol=2 * u * mx.abs(ours).max().item())
    theirs = ops.gather_swiglu(x, gate, up, rhs_indices=rhs)
    assert mx.allclose(ours, theirs, **near)
    theirs = ops.swiglu(x, *[tuple(a[0] for a in q) for q in (gate, up)])
    assert mx.allclose(one, theirs, **near)
