"""Attention of few queries, one by one: the bits of each query alone."""

import mlx.core as mx
import pytest

from mlx_nibble.acceleration import by_query


def inputs(queries: int, keys: int) -> list[mx.array]:
    shapes = [(1, 4, queries, 64), (1, 2, keys, 64), (1, 2, keys, 64)]
    return [mx.random.normal(shape).astype(mx.float16) for shape in shapes]


@pytest.mark.parametrize("mask", [None, "causal"])
@pytest.mark.parametrize("queries", [1, 2, 5, by_query.MOST_QUERIES + 1])
def test_it_is_attention(queries, mask):
    q, k, v = inputs(queries, 40)
    ours = by_query.attention(q, k, v, scale=0.125, mask=mask)
    exact = [a.astype(mx.float32) for a in (q, k, v)]
    theirs = mx.fast.scaled_dot_product_attention(*exact, scale=0.125, mask=mask)
    assert ours.dtype == mx.float16 and mx.allclose(ours, theirs, 1e-3, 2e-3)


def test_a_query_has_the_bits_of_a_step_of_its_own():
    q, k, v = inputs(4, 30)
    together = by_query.attention(q, k, v, scale=0.125, mask="causal")
    for i in range(4):
        seen = 27 + i
        alone = mx.fast.scaled_dot_product_attention(
            q[:, :, i : i + 1], k[:, :, :seen], v[:, :, :seen], scale=0.125
        )
        assert mx.array_equal(together[:, :, i : i + 1], alone)


def test_an_array_as_mask_is_left_to_mlx():
    q, k, v = inputs(3, 20)
    seen = mx.tri(3, 20, 17, dtype=mx.bool_)
    ours = by_query.attention(q, k, v, scale=0.125, mask=seen)
    theirs = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=seen)
    assert mx.array_equal(ours, theirs)
