"""Gradients, tangents, vmap, compile and streams of the primitives."""

import math

import mlx.core as mx
import pytest

from mlx_nibble import ops
from mlx_nibble.numerics import LAMBDA, UNIT_ROUNDOFF
from tests.support.arrays import to_numpy
from tests.support.tolerance import relative_rms

TOLERANCE = dict(rtol=1e-5, atol=1e-4)


def quantized(shape=(48, 64)):
    q = mx.quantize(mx.random.normal(shape), 64, 4)
    mx.eval(q)
    return q


def loss_of(op, transpose=True):
    def loss(x, w, scales, biases):
        y = op(x, w, scales, biases, transpose)
        return (y * mx.cos(y)).sum()

    return loss


@pytest.mark.parametrize("transpose", [True, False])
@pytest.mark.parametrize("x_batch", [(), (2,), (3, 2)])
@pytest.mark.parametrize("w_batch", [(), (2,), (3, 1)])
def test_gradients_are_those_of_the_dense_product(x_batch, w_batch, transpose):
    w, scales, biases = quantized((*w_batch, 48, 64))
    x = mx.random.normal((*x_batch, 4, 64 if transpose else 48))

    def dense(x, w, scales, biases, transpose):
        w_hat = mx.dequantize(w, scales, biases)
        return x @ (w_hat.swapaxes(-1, -2) if transpose else w_hat)

    cotangent = mx.random.normal(dense(x, w, scales, biases, transpose).shape)

    def gradients(op):
        def f(x, scales, biases):
            return op(x, w, scales, biases, transpose)

        return mx.vjp(f, [x, scales, biases], [cotangent])[1]

    for ours, theirs in zip(
        gradients(ops.quantized_matmul), gradients(dense), strict=True
    ):
        assert ours.shape == theirs.shape
        # The longest sum is that of a group's bias: 64 elements of every row.
        terms = 64 * cotangent.size // cotangent.shape[-1]
        allowed = LAMBDA * math.sqrt(terms) * UNIT_ROUNDOFF["float32"]
        assert relative_rms(to_numpy(ours), to_numpy(theirs)) <= allowed


@pytest.mark.cpu
def test_the_codes_have_no_gradient():
    w, scales, biases = quantized()
    x = mx.random.normal((2, 64))
    with pytest.raises(ValueError, match="integers"):
        mx.grad(loss_of(ops.quantized_matmul), argnums=1)(x, w, scales, biases)


@pytest.mark.parametrize("which", [(0,), (2,), (3,), (0, 2, 3)])
def test_tangents_are_directional_derivatives(which):
    inputs = [mx.random.normal((2, 64)), *quantized()]
    chosen = [inputs[i] for i in which]
    tangents = [mx.random.normal(a.shape) for a in chosen]

    def run(op):
        def f(*args):
            full = list(inputs)
            for i, a in zip(which, args, strict=True):
                full[i] = a
            return op(*full)

        return mx.jvp(f, chosen, tangents)[1][0]

    def dense(x, w, scales, biases):
        codes = mx.dequantize(w, mx.ones_like(scales), mx.zeros_like(biases))
        spread = [mx.repeat(a, 64, axis=-1) for a in (scales, biases)]
        return x @ (codes * spread[0] + spread[1]).T

    assert mx.allclose(run(ops.quantized_matmul), run(dense), **TOLERANCE)


def test_dequantize_gradients_and_tangents():
    w, scales, biases = quantized()
    dense = mx.dequantize(w, mx.ones_like(scales), mx.zeros_like(biases))
    c = mx.random.normal((48, 64))

    def loss(scales, biases):
        return (ops.dequantize(w, scales, biases) * c).sum()

    d_scales, d_biases = mx.grad(loss, argnums=(0, 1))(scales, biases)
    assert mx.allclose(d_scales, (c * dense).sum(-1, keepdims=True), **TOLERANCE)
    assert mx.allclose(d_biases, c.sum(-1, keepdims=True), **TOLERANCE)

    ts, tb = mx.random.normal(scales.shape), mx.random.normal(biases.shape)
    _, (tangent,) = mx.jvp(
        lambda s, b: ops.dequantize(w, s, b), [scales, biases], [ts, tb]
    )
    assert mx.allclose(tangent, ts * dense + tb, **TOLERANCE)


@pytest.mark.parametrize("x_axis", [None, 0, 1])
@pytest.mark.parametrize("w_axis", [None, 0])
@pytest.mark.parametrize("x_rank", [1, 2, 3])
def test_vmap_is_a_loop(x_axis, w_axis, x_rank):
    if x_axis is None and w_axis is None:
        x_axis = 0
    size = 3
    x_shape = [64] if x_rank == 1 else [2, 64] if x_rank == 2 else [4, 2, 64]
    if x_axis is not None:
        x_shape.insert(min(x_axis, x_rank - 1), size)
        x_axis = min(x_axis, x_rank - 1)
    x = mx.random.normal(x_shape)
    q = quantized((48, 64) if w_axis is None else (size, 48, 64))

    mapped = mx.vmap(ops.quantized_matmul, in_axes=(x_axis, *[w_axis] * 3))(x, *q)

    def at(a, axis, i):
        return a if axis is None else mx.take(a, i, axis)

    loop = mx.stack(
        [
            ops.quantized_matmul(at(x, x_axis, i), *[at(a, w_axis, i) for a in q])
            for i in range(size)
        ]
    )
    assert mapped.shape == loop.shape
    assert mx.allclose(mapped, loop, **TOLERANCE)


def test_vmap_over_the_scales_alone():
    w, scales, biases = quantized()
    x = mx.random.normal((2, 64))
    many = mx.stack([scales, 2 * scales, -scales])
    mapped = mx.vmap(ops.quantized_matmul, in_axes=(None, None, 0, None))(
        x, w, many, biases
    )
    for i in range(3):
        one = ops.quantized_matmul(x, w, many[i], biases)
        assert mx.allclose(mapped[i], one, **TOLERANCE)
    rows = mx.vmap(ops.dequantize, in_axes=(None, 0, None))(w, many, biases)
    # A batch may be computed by other operations, which round each step.
    off = 3 * UNIT_ROUNDOFF["float32"] * (mx.abs(rows[1]) + 2 * mx.abs(biases).max())
    assert (mx.abs(rows[1] - ops.dequantize(w, many[1], biases)) <= off).all()


@pytest.mark.parametrize("shapeless", [False, True])
def test_compile(shapeless):
    q = quantized()

    def plain(x):
        return mx.tanh(ops.quantized_matmul(x + 1, *q)) * 2

    compiled = mx.compile(plain, shapeless=shapeless)
    for rows in (1, 3, 40):
        x = mx.random.normal((rows, 64))
        assert mx.allclose(compiled(x), plain(x), **TOLERANCE)


def test_compile_merges_equal_products():
    q = quantized()

    def twice(x):
        return ops.quantized_matmul(x, *q) - ops.quantized_matmul(x, *q)

    x = mx.random.normal((2, 64))
    assert mx.abs(mx.compile(twice)(x)).max() == 0


def test_compiled_gradient_step():
    w, scales, biases = quantized()
    x = mx.random.normal((4, 64))
    grad = mx.grad(loss_of(ops.quantized_matmul), argnums=(0, 2))
    eager = grad(x, w, scales, biases)
    for a, b in zip(mx.compile(grad)(x, w, scales, biases), eager, strict=True):
        assert mx.allclose(a, b, **TOLERANCE)


@pytest.mark.cpu
def test_several_streams_at_once():
    streams = [mx.new_stream(mx.cpu) for _ in range(4)]
    q = quantized((256, 512))
    x = mx.random.normal((8, 512))
    want = ops.quantized_matmul(x, *q)
    results = [ops.quantized_matmul(x, *q, stream=streams[i % 4]) for i in range(40)]
    mx.eval(results)
    assert all(mx.array_equal(y, want) for y in results)
