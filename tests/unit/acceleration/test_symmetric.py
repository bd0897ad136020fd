"""Recognition of symmetric matrices, and its effect."""

from __future__ import annotations

import gc

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_nibble import _native, accelerate, ops
from mlx_nibble.acceleration import symmetric
from mlx_nibble.formats import SUPPORTED_BITS
from tests.support.arrays import DTYPES

TOLERANCE = dict(rtol=1e-5, atol=1e-4)


def matrix(bits=4, dtype=mx.float32):
    """Return (w, scales, biases) of a symmetric matrix."""
    w, scales, _ = mx.quantize(mx.random.normal((48, 256)), 64, bits)
    scales = scales.astype(dtype)
    q = (w, scales, -(2 ** (bits - 1)) * scales)
    mx.eval(q)
    return q


def recognise(q, bits=4):
    return symmetric.recognise([(q[1], q[2], bits)])[0]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=list(DTYPES))
@pytest.mark.parametrize("bits", SUPPORTED_BITS)
def test_exactly_the_symmetric_is_recognised(bits, dtype):
    _, scales, biases = matrix(bits, dtype)
    other = matrix(bits, dtype)
    last = np.array(biases.view(mx.uint32 if dtype == mx.float32 else mx.uint16))
    last[-1, -1] ^= 1  # one unit in the last place, in the last group
    nearly = mx.array(last).view(dtype)
    answers = symmetric.recognise(
        [
            (scales, biases, bits),
            (scales, nearly, bits),
            (scales, biases, 4 if bits != 4 else 8),
            (scales, other[2], bits),
            (*mx.quantize(mx.random.uniform(shape=(48, 256)), 64, bits)[1:], bits),
        ]
    )
    assert answers == [True, False, False, False, False]


def test_a_product_out_of_range_is_not_symmetric():
    scales = mx.full((4, 4), 30000.0, mx.float16)
    assert not symmetric.recognise([(scales, -8 * scales, 4)])[0]


def test_a_group_of_nothing_but_zeros_may_have_either_zero():
    scales = mx.zeros((4, 4))
    assert symmetric.recognise([(scales, mx.zeros((4, 4)), 4)])[0]


def unread(q):
    """Return True if the operations do not read these biases, which are NaN."""
    x = mx.ones((2, 256))
    rhs = mx.zeros((2,), mx.uint32)
    results = [
        ops.quantized_matmul(x, *q),
        ops.gather_qmm(x[:, None], *q, rhs_indices=rhs),
        ops.swiglu(x, q, q),
        ops.gather_swiglu(x[:, None], q, q, rhs_indices=rhs),
        ops.quantized_matmul(x[:, :48], *q, transpose=False),
    ]
    answers = {bool(mx.isfinite(y).all()) for y in results}
    assert len(answers) == 1
    return answers.pop()


@pytest.mark.cpu
def test_what_is_known_is_not_read():
    w, scales, _ = matrix()
    nothing = mx.full(scales.shape, mx.nan)
    q = (w, scales, nothing)
    assert not unread(q)
    token = _native.ext.remember_symmetric(scales, nothing, 4)
    assert unread(q)
    # Other arrays with the same values are not recognised.
    assert not unread((w, mx.array(scales), nothing))
    assert not unread((w, scales, mx.array(nothing)))
    _native.ext.forget_symmetric(token)
    assert not unread(q)


def test_what_is_written_to_is_no_longer_known():
    q = matrix()
    x = mx.random.normal((2, 256))
    assert recognise(q)
    before = ops.quantized_matmul(x, *q)
    assert mx.allclose(before, mx.quantized_matmul(x, *q), rtol=1e-4, atol=1e-3)
    biases = q[2]
    biases += 1
    after = ops.quantized_matmul(x, *q)
    assert mx.allclose(after - before, x.sum(-1, keepdims=True), rtol=1e-3, atol=1e-3)


def test_nothing_outlives_the_arrays():
    gc.collect()
    known = len(symmetric._watched)
    q = matrix()
    assert recognise(q)
    assert recognise(q)
    assert len(symmetric._watched) == known + 1
    del q
    gc.collect()
    assert len(symmetric._watched) == known


@pytest.mark.cpu
def test_gradients_and_tangents_are_those_of_the_affine_product():
    w, scales, biases = q = matrix()
    assert recognise(q)
    plain = mx.array(biases)
    x, t = mx.random.normal((2, 256)), mx.random.normal(biases.shape)

    def f(x, scales, biases):
        return (ops.quantized_matmul(x, w, scales, biases) ** 2).sum()

    known, unknown = (
        mx.grad(f, argnums=(0, 1, 2))(x, scales, b) for b in (biases, plain)
    )
    for a, b in zip(known, unknown, strict=True):
        assert mx.allclose(a, b, rtol=1e-4, atol=1e-2)
    tangents = [
        mx.jvp(lambda b: ops.quantized_matmul(x, w, scales, b), [b], [t])[1][0]
        for b in (biases, plain)
    ]
    assert mx.allclose(*tangents, **TOLERANCE)
    explicit = mx.jvp(
        lambda b: ops.quantized_matmul(x, w, scales, b, symmetric=True), [plain], [t]
    )
    assert mx.allclose(explicit[1][0], tangents[0], **TOLERANCE)


def test_accelerate_recognises_and_training_goes_on():
    model = nn.Sequential(nn.Linear(256, 48), nn.Linear(48, 64))
    layer = nn.QuantizedLinear.from_linear(model.layers[0])
    layer.biases = -8 * layer.scales
    model.layers[0] = layer
    x = mx.random.normal((2, 256))
    stock = layer(x)
    accelerate(model)
    assert id(layer.biases) in {id(ref()) for ref in symmetric._watched.values()}
    assert mx.allclose(layer(x), stock, rtol=1e-4, atol=1e-3)
    # Arrays that an optimizer puts in their place are read.
    layer.biases = layer.biases + 1
    moved = layer(x) - stock
    expected = mx.broadcast_to(x.sum(-1, keepdims=True), moved.shape)
    assert mx.allclose(moved, expected, rtol=1e-3, atol=1e-3)
