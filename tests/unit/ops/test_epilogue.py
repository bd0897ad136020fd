"""quantized_matmul(bias=, residual=): one rounding, and every transform."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import _native, ops
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support import oracle
from tests.support.arrays import DTYPES, to_mlx, to_numpy, weights_to_mlx
from tests.support.tolerance import (
    assert_close,
    bound,
    integer_bound,
    integers,
    on_cuda,
)

TOLERANCE = dict(rtol=1e-5, atol=1e-4)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    M=st.integers(0, 40),
    N=st.sampled_from([1, 9, 33, 70]),
    groups=st.integers(1, 5),
    dtype=st.sampled_from(list(DTYPES)),
    with_bias=st.booleans(),
    with_residual=st.booleans(),
)
def test_the_sum_is_rounded_once(seed, M, N, groups, dtype, with_bias, with_residual):
    rng = np.random.default_rng(seed)
    K = 32 * groups
    weights = oracle.random_weights(rng, (N, K), 4, 32)
    q, w = weights_to_mlx(weights, "float16")
    x = to_mlx(rng.standard_normal((M, K)), dtype)
    bias = to_mlx(10 * rng.standard_normal(N), dtype)
    residual = to_mlx(10 * rng.standard_normal((M, N)), dtype)
    y = ops.quantized_matmul(
        x,
        *q,
        group_size=32,
        bias=bias if with_bias else None,
        residual=residual if with_residual else None,
    )
    addends = with_bias * to_numpy(bias) + with_residual * to_numpy(residual).astype(
        np.float64
    )
    exact = oracle.matmul(to_numpy(x), w.dequantize()) + addends
    magnitude = oracle.matmul(abs(to_numpy(x)), w.magnitude())
    magnitude = magnitude + with_bias * abs(to_numpy(bias))
    magnitude = magnitude + with_residual * abs(to_numpy(residual))
    allowed = bound(exact, magnitude, K + 2, dtype)
    off = integer_bound(to_numpy(x), w.dequantize(), 32, integers(dtype))
    assert y.dtype == DTYPES[dtype]
    assert_close(to_numpy(y), exact, allowed + off * (1 + UNIT_ROUNDOFF[dtype]))


def quantized(*shape):
    return mx.quantize(mx.random.normal(shape))


def added(x, q, bias, residual, transpose=True):
    y = ops.quantized_matmul(x, *q, transpose)
    y = y if bias is None else y + bias
    return y if residual is None else y + residual


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        ((64,), (64, 64)),
        ((64,), (3, 64, 64)),
        ((2, 5, 64), (64, 64)),
        ((2, 64), (3, 64, 64)),
        ((2, 3, 4, 2, 64), (2, 1, 4, 64, 64)),
    ],
)
def test_batches(x, w, transpose):
    q = quantized(*w)
    x = mx.random.normal(x)
    bias = mx.random.normal((64,))
    residual = mx.random.normal(ops.quantized_matmul(x, *q, transpose).shape)
    for b, r in ((bias, None), (None, residual), (bias, residual)):
        y = ops.quantized_matmul(x, *q, transpose, bias=b, residual=r)
        assert mx.allclose(y, added(x, q, b, r, transpose), **TOLERANCE)


def test_the_result_has_the_type_of_x():
    q = quantized(48, 64)
    x = mx.random.normal((2, 64)).astype(mx.bfloat16)
    y = ops.quantized_matmul(x, *q, bias=mx.ones(48), residual=mx.ones((2, 48)))
    assert y.dtype == mx.bfloat16


def test_a_mode_of_floats():
    q = mx.quantize(mx.random.normal((64, 128)), 32, 4, "mxfp4")
    x, bias = mx.random.normal((2, 128)), mx.random.normal((64,))
    form = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    y = ops.quantized_matmul(x, *q, **form, bias=bias)
    assert mx.allclose(y, mx.quantized_matmul(x, *q, **form) + bias, **TOLERANCE)


def test_strided_addends():
    q = quantized(48, 64)
    x = mx.random.normal((2, 64))
    bias, residual = mx.random.normal((96,))[::2], mx.random.normal((48, 2)).T
    y = ops.quantized_matmul(x, *q, bias=bias, residual=residual)
    assert mx.allclose(y, added(x, q, bias, residual), **TOLERANCE)


@pytest.mark.parametrize(
    ("addend", "message"),
    [
        ({"bias": mx.zeros(47)}, r"bias of shape \(48,\) is required .* \(47,\)"),
        ({"bias": mx.zeros((1, 48))}, r"bias of shape \(48,\) is required"),
        ({"residual": mx.zeros(48)}, r"residual must have .* \(2,48\), .* \(48,\)"),
    ],
)
def test_addends_that_do_not_fit_are_an_error(addend, message):
    with pytest.raises(ValueError, match=rf"\[quantized_matmul\] {message}"):
        ops.quantized_matmul(mx.zeros((2, 64)), *quantized(48, 64), **addend)


def test_gradients_and_tangents():
    w, *params = quantized(48, 64)
    inputs = [mx.random.normal((4, 64)), *params]
    inputs += [mx.random.normal((48,)), mx.random.normal((4, 48))]
    tangents = [mx.random.normal(a.shape) for a in inputs]
    cotangent = mx.random.normal((4, 48))

    def fused(x, scales, biases, bias, residual):
        return ops.quantized_matmul(x, w, scales, biases, bias=bias, residual=residual)

    def apart(x, scales, biases, bias, residual):
        return added(x, (w, scales, biases), bias, residual)

    for transform, at in ((mx.vjp, [cotangent]), (mx.jvp, tangents)):
        ours, theirs = (transform(f, inputs, at)[1] for f in (fused, apart))
        for a, b in zip(ours, theirs, strict=True):
            assert mx.allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("w_axis", [None, 0])
@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, None), (1, 0, 2)], ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_vmap_is_a_loop(axes, w_axis, vector):
    """Map over x, bias and residual."""
    shapes = [[64], [48], [48]] if vector else [[2, 64], [48], [2, 48]]
    axes = [
        a if a is None else min(a, len(s)) for a, s in zip(axes, shapes, strict=True)
    ]
    for shape, axis in zip(shapes, axes, strict=True):
        if axis is not None:
            shape.insert(axis, 3)
    x, bias, residual = (mx.random.normal(shape) for shape in shapes)
    q = quantized(48, 64) if w_axis is None else quantized(3, 48, 64)

    def f(x, bias, residual, *q):
        return ops.quantized_matmul(x, *q, bias=bias, residual=residual)

    mapped = mx.vmap(f, in_axes=(*axes, *[w_axis] * 3))(x, bias, residual, *q)

    def at(a, axis, i):
        return a if axis is None else mx.take(a, i, axis)

    arguments = list(zip((x, bias, residual, *q), (*axes, *[w_axis] * 3), strict=True))
    loop = mx.stack([f(*[at(a, axis, i) for a, axis in arguments]) for i in range(3)])
    assert mapped.shape == loop.shape
    assert mx.allclose(mapped, loop, **TOLERANCE)


def test_compile_does_not_merge_what_differs():
    q = quantized(48, 64)
    bias = mx.random.normal((48,))

    def difference(x):
        with_bias = ops.quantized_matmul(x, *q, bias=bias)
        return with_bias - ops.quantized_matmul(x, *q)

    x = mx.random.normal((2, 64))
    assert mx.allclose(mx.compile(difference)(x), mx.stack([bias, bias]), **TOLERANCE)


def test_without_the_extension_it_is_mlx_own(monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    # MLX's own product for CUDA changes from call to call in float32, and for
    # shorter rows.
    K = 512
    q = quantized(48, K)
    x, bias, residual = (mx.random.normal(s) for s in ((2, K), (48,), (2, 48)))
    if on_cuda():
        x, bias, residual = (a.astype(mx.bfloat16) for a in (x, bias, residual))
        q = q[0], *(a.astype(mx.bfloat16) for a in q[1:])
    y = ops.quantized_matmul(x, *q, bias=bias, residual=residual)
    assert mx.array_equal(y, mx.quantized_matmul(x, *q) + bias + residual)
