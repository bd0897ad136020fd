"""Gradients that our CPU kernels compute, against float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import fast, numerics, ops
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support.arrays import DTYPES, to_mlx, to_numpy
from tests.support.tolerance import assert_close

U = UNIT_ROUNDOFF["float32"]


def attention_gradients(q, k, v, dy, scale, causal):
    """Return dq, dk and dv in float64, and bounds of float32 results.

    Each bound is the sum of an operand's error times the other operand, and the error
    of the sum itself.
    """
    q, k, v, dy = (a.astype(np.float64) for a in (q, k, v, dy))
    groups = q.shape[1] // k.shape[1]
    k, v = (np.repeat(a, groups, 1) for a in (k, v))
    L, S = q.shape[2], k.shape[2]

    def t(a):
        return a.swapaxes(-1, -2)

    hidden = np.triu(np.ones((L, S), bool), S - L + 1) if causal else False
    s = np.where(hidden, -np.inf, scale * (q @ t(k)))
    p = np.exp(s - s.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    off_s = numerics.of_sum(scale * (abs(q) @ t(abs(k))), q.shape[-1])
    off_s = np.where(hidden, 0, off_s).max(-1, keepdims=True)
    # A relative error of p: of both scores, of exp, of the sum and of the division.
    off_p = p * (2 * off_s + numerics.of_sum(np.ones(1), S) + 8 * U)
    dp = dy @ t(v)
    off_dp = numerics.of_sum(abs(dy) @ t(abs(v)), v.shape[-1])
    whole = (p * dp).sum(-1, keepdims=True)
    off_whole = (off_p * abs(dp) + p * off_dp).sum(-1, keepdims=True)
    off_whole += numerics.of_sum((p * abs(dp)).sum(-1, keepdims=True), S)
    ds = scale * p * (dp - whole)
    size = abs(dp) + abs(whole)
    off_ds = scale * (off_p * size + p * (off_dp + off_whole) + 4 * U * p * size)
    results = []
    for a, off_a, b, shared in (
        (ds, off_ds, k, False),
        (t(ds), t(off_ds), q, True),
        (t(p), t(off_p), dy, True),
    ):
        exact, terms = a @ b, a.shape[-1]
        off = off_a @ abs(b)
        magnitude = abs(a) @ abs(b)
        if shared:
            by_head = (exact.shape[0], -1, groups, *exact.shape[2:])
            exact, off, magnitude = (
                x.reshape(by_head).sum(2) for x in (exact, off, magnitude)
            )
            terms *= groups
        results.append((exact, off + numerics.of_sum(magnitude, terms)))
    return results


@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize(
    ("heads", "lengths", "widths", "causal"),
    [
        ((9, 3), (70, 70), (64, 64), True),
        ((4, 4), (1, 300), (16, 32), False),
        ((4, 2), (65, 257), (32, 16), True),
        ((2, 1), (130, 600), (80, 48), True),
        ((2, 1), (9, 5), (16, 16), False),
    ],
)
def test_attention(rng, heads, lengths, widths, causal, dtype):
    (H, h), (L, S), (D, Dv) = heads, lengths, widths
    scale = D**-0.5
    arrays = [
        to_mlx(rng.standard_normal((2, n, count, width)), dtype).swapaxes(1, 2)
        for n, count, width in ((L, H, D), (S, h, D), (S, h, Dv), (L, H, Dv))
    ]
    *primals, dy = arrays

    def attend(q, k, v):
        mask = "causal" if causal else None
        return fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)

    result = mx.vjp(attend, primals, [dy])[1]
    expected = attention_gradients(*map(to_numpy, arrays), scale, causal)
    for name, got, (exact, off) in zip("qkv", result, expected, strict=True):
        assert got.dtype == dy.dtype
        allowed = numerics.of_result(exact, off, dtype)
        assert_close(to_numpy(got), exact, allowed, f"d{name}")


def test_attention_of_other_forms_is_differentiated_by_mlx(rng):
    """A mask, and a width that is no multiple of 16."""
    q = mx.array(rng.standard_normal((1, 2, 5, 20)).astype(np.float32))
    mask = mx.array(rng.random((5, 5)) > 0.3) | mx.eye(5).astype(mx.bool_)

    def loss(op):
        return lambda q: mx.square(op(q, q, q, scale=0.3, mask=mask)).sum()

    ours = mx.grad(loss(fast.scaled_dot_product_attention))(q)
    theirs = mx.grad(loss(mx.fast.scaled_dot_product_attention))(q)
    # Some hundred float32 operations on values of at most 10.
    np.testing.assert_allclose(ours, theirs, atol=100 * 10 * U)


def test_second_gradients_of_attention(rng):
    q = mx.array(rng.standard_normal((1, 4, 6, 16)).astype(np.float32))
    k = mx.array(rng.standard_normal((1, 2, 6, 16)).astype(np.float32))

    def second(op):
        def first(q):
            y = mx.grad(lambda q: mx.square(op(q, k, k, scale=0.3)).sum())(q)
            return mx.square(y).sum()

        return mx.grad(first)(q)

    ours = second(fast.scaled_dot_product_attention)
    theirs = second(mx.fast.scaled_dot_product_attention)
    np.testing.assert_allclose(ours, theirs, atol=1000 * U * float(abs(theirs).max()))


def test_a_product_changes_as_its_gradients_say(rng):
    """The product is linear in scales and biases: a finite difference is exact."""
    w = mx.array(rng.standard_normal((96, 128)).astype(np.float32))
    x = mx.array(rng.standard_normal((33, 128)).astype(np.float32))
    dy = mx.array(rng.standard_normal((33, 96)).astype(np.float32))
    codes, scales, biases = mx.quantize(w)
    moves = [mx.array(rng.standard_normal(scales.shape).astype(np.float32))] * 2

    def product(scales, biases):
        return ops.quantized_matmul(x, codes, scales, biases)

    gradients = mx.vjp(product, [scales, biases], [dy])[1]
    predicted = sum(
        float((to_numpy(g).astype(np.float64) * to_numpy(m)).sum())
        for g, m in zip(gradients, moves, strict=True)
    )
    here = product(scales, biases)
    there = product(scales + moves[0], biases + moves[1])
    change = (to_numpy(there).astype(np.float64) - to_numpy(here)) * to_numpy(dy)
    spread = [np.repeat(abs(to_numpy(m)), 64, -1) for m in moves]
    codes_of = to_numpy(mx.dequantize(codes, mx.ones_like(scales), 0 * biases))
    size = abs(to_numpy(dy)) @ (codes_of * spread[0] + spread[1] + abs(to_numpy(w)))
    magnitude = np.array((size * abs(to_numpy(x))).sum())
    allowed = 2 * numerics.of_sum(magnitude, x.size * 96)
    assert abs(change.sum() - predicted) <= allowed
