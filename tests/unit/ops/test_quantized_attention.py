"""Attention over quantized keys and values against the float64 oracle."""

import os

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.base import quantized_scaled_dot_product_attention as of_mlx_lm
from mlx_lm.models.cache import KVCache, QuantizedKVCache

from mlx_nibble import fast
from mlx_nibble.numerics import UNDERFLOW, UNIT_ROUNDOFF
from tests.support import layer_oracle
from tests.support.arrays import DTYPES, to_mlx, to_numpy
from tests.support.graph import node_names
from tests.support.oracle import Weights
from tests.support.tolerance import assert_close
from tests.unit.ops.test_fast import dtypes, laid_out, masks, rng_of

EXAMPLES = 15 if "NIBBLE_CPU_ISA" in os.environ else 60
FORMATS = [(8, 64), (8, 32), (4, 64), (4, 32), (2, 32), (8, 128)]


def weights(parts, bits: int, group_size: int) -> Weights:
    """Return the arrays of `mx.quantize` as the oracle's."""
    words, scales, biases = parts
    return Weights(
        np.array(words), to_numpy(scales), to_numpy(biases), bits, group_size
    )


def quantized(data, a: np.ndarray, dtype: str, bits: int, group_size: int):
    """Return codes, scales and biases, laid out one like the other or not."""
    parts = mx.quantize(to_mlx(a, dtype), group_size, bits)
    how = data.draw(st.sampled_from(["own", "cache", "several"]))
    if how == "own":
        return parts
    if how == "cache":  # slices of one buffer with room for more
        S = a.shape[2]
        room = [(0, 0), (0, 0), (0, 3), (0, 0)]
        return [mx.pad(part, room)[:, :, :S] for part in parts]
    return [
        laid_out(data, to_numpy(part), dtype).astype(part.dtype) if i else part
        for i, part in enumerate(parts)
    ]


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_attention(data):
    rng = rng_of(data)
    dtype, scale_dtype = data.draw(dtypes), data.draw(dtypes)
    bits, group_size = data.draw(st.sampled_from(FORMATS))
    B, kv_heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    group = data.draw(st.sampled_from([1, 2, 3, 7]))
    L = data.draw(st.sampled_from([1, 1, 1, 2, 5, 33, 65, 140]))
    S = L + data.draw(st.sampled_from([0, 1, 15, 31, 32, 127, 128, 129, 700]))
    D = group_size * data.draw(st.integers(1, 3))
    Dv = group_size * data.draw(st.integers(1, 2))
    q = laid_out(data, rng.standard_normal((B, kv_heads * group, L, D)), dtype)
    form = scale_dtype, bits, group_size
    k, v = (
        quantized(data, rng.standard_normal((B, kv_heads, S, n)), *form)
        for n in (D, Dv)
    )
    mask, seen = masks(data, rng, (B, kv_heads * group, L, S), dtype)
    sinks = None
    if data.draw(st.booleans()):
        sinks = to_mlx(rng.standard_normal(kv_heads * group), dtype)
    scale = float(np.float32(D**-0.5))
    y = fast.quantized_scaled_dot_product_attention(
        q, k, v, scale, mask, group_size, bits, sinks=sinks
    )
    assert y.dtype == mx.result_type(q, k[1])
    keys, values = (weights(a, bits, group_size) for a in (k, v))
    exact, allowed = layer_oracle.attention(
        to_numpy(q),
        keys.dequantize(),
        values.dequantize(),
        scale,
        seen,
        None if sinks is None else to_numpy(sinks),
        keys.magnitude(),
        values.magnitude(),
    )
    out = str(y.dtype).removeprefix("mlx.core.")
    u = UNIT_ROUNDOFF[out]
    assert_close(
        to_numpy(y), exact, allowed * (1 + u) + u * abs(exact) + UNDERFLOW[out]
    )


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("mask", [None, "causal", "array"])
def test_attention_is_mlx_lms(bits, mask):
    """Fill a cache step by step; mlx-lm's function scales its queries in place."""
    cache = QuantizedKVCache(64, bits)
    for L in (300, 1, 5, 1):
        q = mx.random.normal((2, 6, L, 64))
        k, v = cache.update_and_fetch(*mx.random.normal((2, 2, 2, L, 64)))
        given = mask
        if mask == "array":
            given = mx.random.normal((2, 1, L, cache.offset)) < 1
        theirs = of_mlx_lm(q + 0, k, v, 0.125, given, 64, bits)
        ours = fast.quantized_scaled_dot_product_attention(
            q, k, v, 0.125, given, 64, bits
        )
        assert mx.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_attention_reads_a_cache_where_it_lies():
    cache = KVCache()
    cache.update_and_fetch(*mx.random.normal((2, 1, 2, 300, 64)))
    small = cache.to_quantized(64, 8)
    q = mx.random.normal((1, 4, 1, 64))
    mx.eval(q, small.state)
    k, v = small.keys_and_values()  # slices of a buffer of 512 rows
    y = fast.quantized_scaled_dot_product_attention(q, k, v, 0.1)
    assert node_names(y) == {"NibbleAttention": 1}


@pytest.mark.parametrize("where", ["q", "key's scale", "value's bias"])
def test_attention_passes_nan(where):
    """A NaN stays in its row, or in the rows that see its key."""
    L, S = 3, 140
    q, k, v = (mx.random.normal((1, 2, n, 64)) for n in (L, S, S))
    keys, values = (list(mx.quantize(a, 64, 8)) for a in (k, v))
    form = dict(scale=0.1, mask="causal", group_size=64, bits=8)
    before = fast.quantized_scaled_dot_product_attention(q, keys, values, **form)
    if where == "q":
        q[0, 1, L - 1, 3] = mx.nan
    elif where == "key's scale":
        keys[1][0, 1, S - 1] = mx.nan
    else:
        values[2][0, 1, S - 1] = mx.nan
    y = fast.quantized_scaled_dot_product_attention(q, keys, values, **form)
    bad = np.isnan(to_numpy(y))
    # 0 times NaN is NaN: a hidden value is not left out.
    rows = [0, 1, 2] if where == "value's bias" else [2]
    assert bad[0, 1, rows].all() and bad.sum() == 64 * len(rows)
    assert mx.array_equal(y[0, 0], before[0, 0])


def test_attention_leaves_its_queries_and_hidden_rows_are_zeros():
    """mlx-lm's function multiplies its queries by the scale, and averages all keys."""
    q = mx.ones((1, 2, 3, 64))
    parts = mx.quantize(mx.random.normal((1, 2, 2, 64)), 64, 8)
    y = fast.quantized_scaled_dot_product_attention(q, parts, parts, 0.5, "causal")
    assert mx.array_equal(q, mx.ones(q.shape))
    assert not y[:, :, 0].any() and y[:, :, 1:].any()


@pytest.mark.parametrize("bits", [None, 8])
def test_attention_of_a_prompt_stores_no_scores(bits):
    L, heads = 2048, 4
    q, k, v = mx.random.normal((3, 1, heads, L, 64))
    form: dict = dict(scale=0.1, mask="causal")
    if bits:
        k, v = (mx.quantize(a, 64, bits) for a in (k, v))
        form |= dict(group_size=64, bits=bits)
        call = fast.quantized_scaled_dot_product_attention
    else:
        call = fast.scaled_dot_product_attention
    mx.eval(q, k, v)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    mx.eval(call(q, k, v, **form))
    # The result; a row of scores for each query would take 32 times as much.
    assert mx.get_peak_memory() - before < 2 * q.nbytes


@pytest.mark.parametrize("bits", [3, 6])
def test_attention_of_other_widths_is_mlx_own(bits):
    q, k, v = (mx.random.normal((1, 2, n, 64)) for n in (2, 9, 9))
    keys, values = (mx.quantize(a, 64, bits) for a in (k, v))
    y = fast.quantized_scaled_dot_product_attention(
        q, keys, values, 0.1, "causal", 64, bits
    )
    k, v = (mx.dequantize(*a, 64, bits) for a in (keys, values))
    want = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1, mask="causal")
    assert mx.array_equal(y, want)


def test_gradients_of_attention_are_mlx_own():
    q, k, v = (mx.random.normal((1, 2, n, 64)) for n in (2, 9, 9))
    keys, values = (mx.quantize(a, 64, 8) for a in (k, v))

    def ours(q):
        return fast.quantized_scaled_dot_product_attention(q, keys, values, 0.1).sum()

    def theirs(q):
        k, v = (mx.dequantize(*a, 64, 8) for a in (keys, values))
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1).sum()

    assert mx.array_equal(mx.grad(ours)(q), mx.grad(theirs)(q))


@pytest.mark.parametrize("dtype", DTYPES)
def test_batch_invariant_attention_of_a_query_has_the_same_bits(dtype):
    S = 1111
    q = mx.random.normal((1, 6, S, 64)).astype(DTYPES[dtype])
    k, v = (mx.quantize(mx.random.normal((1, 2, S, 64)), 64, 8) for _ in range(2))

    def attend(first, last):
        rows = ([a[:, :, :last] for a in parts] for parts in (k, v))
        mask = "causal" if last - first > 1 else None
        return fast.quantized_scaled_dot_product_attention(
            q[:, :, first:last], *rows, 0.1, mask, batch_invariant=True
        )

    whole = attend(0, S)
    for first, last in ((0, 1), (600, 604), (S - 1, S)):
        assert mx.array_equal(attend(first, last), whole[:, :, first:last])


ERRORS = {
    "two arrays": (dict(q_keys=2), "codes, scales and biases are required but got 2"),
    "no bits": (dict(bits=0), "bits"),
    "an empty mask": (dict(mask=""), "mask must be None"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    change, message = ERRORS[name]
    parts = mx.quantize(mx.ones((1, 1, 4, 64)), 64, 8)
    form = dict(q_keys=3, scale=1.0, bits=8) | change
    form["q_keys"] = parts[: form["q_keys"]]
    with pytest.raises(ValueError, match=message):
        fast.quantized_scaled_dot_product_attention(
            mx.ones((1, 1, 1, 64)), q_values=parts, **form
        )
