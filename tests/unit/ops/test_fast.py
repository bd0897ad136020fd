"""The layers between the products against the float64 oracle."""

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import fast
from mlx_nibble.numerics import UNDERFLOW, UNIT_ROUNDOFF
from tests.support import layer_oracle
from tests.support.arrays import DTYPES, to_mlx, to_numpy
from tests.support.graph import node_names
from tests.support.tolerance import assert_close, bound

# Row lengths at and beside vector widths, and the head sizes of models.
WIDTHS = st.sampled_from([1, 7, 15, 16, 17, 32, 33, 40, 64, 80, 96, 128, 256])
dtypes = st.sampled_from(sorted(DTYPES))
# Types of keys and values.
MIXED = [("float16", "float16"), ("bfloat16", "float16"), ("float32", "bfloat16")]
# In the runs of test_every_instruction_set, once for each.
EXAMPLES = 15 if "NIBBLE_CPU_ISA" in os.environ else 60


def rng_of(data) -> np.random.Generator:
    return np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))


def laid_out(data, a: np.ndarray, dtype: str) -> mx.array:
    """Return the same rows as a slice of a larger buffer, or with axes swapped."""
    how = data.draw(st.sampled_from(["own", "slice", "swapped", "columns"]))
    if how == "slice":
        room = np.pad(a, [(0, 0)] * (a.ndim - 2) + [(1, 3), (0, 0)])
        return to_mlx(room, dtype)[..., 1 : 1 + a.shape[-2], :]
    if how == "swapped" and a.ndim > 2:
        return to_mlx(a.swapaxes(-2, -3), dtype).swapaxes(-2, -3)
    if how == "columns":
        return to_mlx(np.repeat(a, 2, axis=-1), dtype)[..., ::2]
    return to_mlx(a, dtype)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_rms_norm(data):
    rng = rng_of(data)
    lead = data.draw(st.lists(st.integers(1, 5), max_size=4))
    D = data.draw(st.one_of(WIDTHS, st.sampled_from([576, 1025])))
    dtype, weight_dtype = data.draw(dtypes), data.draw(dtypes)
    x = laid_out(data, rng.standard_normal((*lead, 1, D)), dtype)
    weight = None
    if data.draw(st.booleans()):
        weight = to_mlx(rng.standard_normal(D), weight_dtype)
    y = fast.rms_norm(x, weight, 1e-5)
    assert y.dtype == mx.fast.rms_norm(x, weight, 1e-5).dtype
    exact = layer_oracle.rms_norm(
        to_numpy(x), None if weight is None else to_numpy(weight), np.float32(1e-5)
    )
    name = str(y.dtype).removeprefix("mlx.core.")
    assert_close(to_numpy(y), exact, bound(exact, abs(exact), D, name))


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_logsumexp(data):
    rng = rng_of(data)
    lead = data.draw(st.lists(st.integers(1, 5), max_size=3))
    D = data.draw(st.one_of(WIDTHS, st.sampled_from([32_769, 49_152])))
    dtype = data.draw(dtypes)
    a = 10 * rng.standard_normal((*lead, 1, D)) + data.draw(st.sampled_from([0, -200]))
    if data.draw(st.booleans()):
        a[..., rng.integers(D)] = data.draw(st.sampled_from([-np.inf, 80]))
    x = laid_out(data, a, dtype)
    axis = data.draw(st.sampled_from([-1, x.ndim - 1, (-1,)]))
    y = fast.logsumexp(x, axis, keepdims=True)
    assert y.dtype == x.dtype and y.shape == (*x.shape[:-1], 1)
    exact = layer_oracle.log_sum_exp(to_numpy(x))
    # A relative error of a term or a sum is an absolute error of its logarithm. The
    # subtraction and the result are rounded in units of the largest input.
    scale = abs(exact) + abs(to_numpy(x).astype(np.float64).max(-1)) + 1
    assert_close(to_numpy(y[..., 0]), exact, bound(exact, scale, min(D, 64), dtype))


def test_logsumexp_has_mlx_shapes_and_infinities():
    a = mx.random.normal((1, 1, 300))
    for axis in (None, 0, -1, (0, 2), (2,), []):
        for keepdims in (False, True):
            ours = fast.logsumexp(a, axis, keepdims)
            theirs = mx.logsumexp(a, axis, keepdims)
            assert ours.shape == theirs.shape
            assert mx.allclose(ours, theirs, rtol=1e-6, atol=0)
    for value in (-np.inf, np.inf):
        a[..., 1] = value
        assert mx.allclose(fast.logsumexp(a), mx.logsumexp(a), rtol=1e-6, atol=0)
    assert fast.logsumexp(mx.full((4,), -np.inf)).item() == -np.inf
    a[..., 2] = np.nan
    a[..., 1] = 0
    assert np.isnan(fast.logsumexp(a).item())


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_argmax_is_mlx(data):
    rng = rng_of(data)
    lead = data.draw(st.lists(st.integers(1, 4), max_size=3))
    D = data.draw(st.one_of(WIDTHS, st.sampled_from([513, 32_769, 49_152])))
    a = rng.standard_normal((*lead, 1, D))
    if data.draw(st.booleans()):
        a = np.round(a)
    for value in data.draw(st.sampled_from([[], [np.nan], [np.inf, np.nan]])):
        a[..., rng.integers(D)] = value
    x = laid_out(data, a, data.draw(dtypes))
    keepdims = data.draw(st.booleans())
    ours = fast.argmax(x, data.draw(st.sampled_from([-1, x.ndim - 1])), keepdims)
    assert node_names(ours)["NibbleArgMax"] == 1
    theirs = mx.argmax(x, -1, keepdims)
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
    assert mx.array_equal(ours, theirs)


def test_argmax_has_mlx_shapes():
    for a in (mx.random.normal((1, 1, 300)), mx.random.normal((3, 5))):
        for axis in (None, *range(-a.ndim, a.ndim)):
            for keepdims in (False, True):
                ours, theirs = (f(a, axis, keepdims) for f in (fast.argmax, mx.argmax))
                assert ours.shape == theirs.shape
                assert mx.array_equal(ours, theirs)
    with pytest.raises(ValueError, match="zero size"):
        fast.argmax(mx.zeros((3, 0)), -1)
    rows = mx.random.normal((3, 5))
    assert mx.array_equal(mx.vmap(fast.argmax)(rows), mx.argmax(rows, -1))


def test_rotations_that_are_kept_are_those_of_a_prompt():
    """Compare rows at positions that come in turns, and again, with all at once."""
    L, D = 300, 32
    x = mx.random.normal((2, 3, L, D))
    freqs = mx.random.uniform(1, 100, (D // 2,))
    kinds = [
        dict(base=1e4, freqs=None),
        *(dict(base=None, freqs=freqs * i) for i in (1, 2)),
        *(dict(base=b, freqs=None) for b in (1e5, 1e6)),
    ]

    def turned(rows: mx.array, kind: dict, offset: int) -> mx.array:
        return fast.rope(rows, D, traditional=False, scale=1.0, offset=offset, **kind)

    want = [turned(x, kind, 0) for kind in kinds]
    for at in [*range(0, L, 37), *range(L), 5, 5]:
        for kind, whole in zip(kinds, want, strict=True):
            rows = slice(at, at + 1)
            assert mx.array_equal(turned(x[:, :, rows], kind, at), whole[:, :, rows])


def test_logsumexp_of_a_row_does_not_depend_on_others():
    a = mx.random.normal((5, 70_000))
    together = fast.logsumexp(a, -1)
    assert [fast.logsumexp(row).item() for row in a] == together.tolist()


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_rope(data):
    rng = rng_of(data)
    B, L = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 2, 31, 33, 70]))
    middle = data.draw(st.sampled_from([(), (1,), (3,), (2, 2)]))
    D = data.draw(st.sampled_from([2, 20, 32, 64, 80, 96, 128]))
    dims = 2 * data.draw(st.integers(1, D // 2)) if data.draw(st.booleans()) else D
    dtype = data.draw(dtypes)
    x = laid_out(data, rng.standard_normal((B, *middle, L, D)), dtype)
    freqs = None
    if data.draw(st.booleans()):
        freqs = np.float32(rng.uniform(1, 1e4, dims // 2))
        freqs[-1] = np.inf  # a pair that is not rotated
    base = None if freqs is not None else data.draw(st.sampled_from([1e4, 5e5]))
    traditional = data.draw(st.booleans())
    scale = data.draw(st.sampled_from([1.0, 0.25]))
    offset = data.draw(st.sampled_from([0, 3, 100_000]))
    offsets, given_offset = np.full(B, offset), offset
    kind = data.draw(st.sampled_from(["int", "scalar", "vector"]))
    if kind == "scalar":
        given_offset = mx.array(offset)
    elif kind == "vector":
        offsets = offset + np.arange(B) * 7
        given_offset = mx.array(offsets)
    y = fast.rope(
        x,
        dims,
        traditional=traditional,
        base=base,
        scale=scale,
        offset=given_offset,
        freqs=None if freqs is None else mx.array(freqs),
    )
    assert y.dtype == x.dtype
    exact, magnitude = layer_oracle.rope(
        to_numpy(x), dims, traditional, base, scale, offsets, freqs
    )
    assert_close(to_numpy(y), exact, bound(exact, magnitude, 2, dtype))


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_swiglu(data):
    rng = rng_of(data)
    shape = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    dtype = data.draw(dtypes)
    size = data.draw(st.sampled_from([1, 30, 200]))
    gate = to_mlx(rng.standard_normal(shape) * size, dtype)
    up = to_mlx(rng.standard_normal(shape[::-1]), dtype).T
    y = fast.swiglu(gate, up)
    exact = layer_oracle.swiglu(to_numpy(gate), to_numpy(up))
    allowed = bound(exact, abs(exact), 4, dtype)
    # Below -88.37 the kernel's exponential is infinite.
    allowed += abs(to_numpy(gate) * to_numpy(up)) * 2.0**-127
    assert_close(to_numpy(y), exact, allowed)


def masks(data, rng, shape, dtype):
    """Return a mask in MLX's form and in the oracle's."""
    kind = data.draw(st.sampled_from(["none", "causal", "bool", "window", "added"]))
    if kind == "none":
        return None, None
    if kind == "causal":
        return "causal", "causal"
    L, S = shape[-2:]
    if kind == "window":
        behind = np.arange(S - L, S)[:, None] - np.arange(S)
        seen = (behind >= 0) & (behind < 5)
        return mx.array(seen), seen
    broadcast = data.draw(st.sampled_from([shape, (shape[0], 1, L, S), (1, S), (S,)]))
    if kind == "bool":
        seen = rng.uniform(size=broadcast) < 0.6
        if data.draw(st.booleans()):
            return mx.array(np.repeat(seen, 2, axis=-1))[..., ::2], seen
        return mx.array(seen), seen
    added = to_mlx(rng.standard_normal(broadcast) * 3, dtype)
    added = mx.where(mx.array(rng.uniform(size=broadcast) < 0.2), -mx.inf, added)
    return added.astype(DTYPES[dtype]), to_numpy(added)


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_attention(data):
    rng = rng_of(data)
    dtype = data.draw(dtypes)
    B, kv_heads = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    group = data.draw(st.sampled_from([1, 2, 3, 7]))
    L = data.draw(st.sampled_from([1, 1, 2, 5, 33, 65, 140]))
    S = L + data.draw(st.sampled_from([0, 1, 15, 127, 128, 129, 700]))
    D = data.draw(WIDTHS)
    Dv = data.draw(st.sampled_from([D, D, 32, 48]))
    q = laid_out(data, rng.standard_normal((B, kv_heads * group, L, D)), dtype)
    # A cache may have another type than the queries.
    k_dtype, v_dtype = data.draw(st.sampled_from([(dtype,) * 2] * 2 + MIXED))
    k = laid_out(data, rng.standard_normal((B, kv_heads, S, D)), k_dtype)
    v = laid_out(data, rng.standard_normal((B, kv_heads, S, Dv)), v_dtype)
    mask, seen = masks(data, rng, (B, kv_heads * group, L, S), dtype)
    sinks = None
    if data.draw(st.booleans()):
        sinks = to_mlx(rng.standard_normal(kv_heads * group), dtype)
    scale = float(np.float32(D**-0.5))
    cap = 0.0 if sinks is not None else data.draw(st.sampled_from([0.0, 0.5, 30.0]))
    y = fast.scaled_dot_product_attention(
        q, k, v, scale=scale, mask=mask, sinks=sinks, cap=cap
    )
    assert y.dtype == mx.result_type(mx.result_type(q, k), v)
    exact, allowed = layer_oracle.attention(
        *(to_numpy(a) for a in (q, k, v)),
        scale,
        seen,
        None if sinks is None else to_numpy(sinks),
        cap=cap,
    )
    out = str(y.dtype).removeprefix("mlx.core.")
    u = UNIT_ROUNDOFF[out]
    assert_close(
        to_numpy(y), exact, allowed * (1 + u) + u * abs(exact) + UNDERFLOW[out]
    )


def capped(q, k, v, cap, mask=None):
    """Return attention whose scores have a cap, as Gemma 2's code has it."""
    scores = mx.tanh(q @ k.swapaxes(-1, -2) / cap) * cap
    if mask is not None:
        scores = mx.where(mask, scores, mx.finfo(scores.dtype).min)
    return mx.softmax(scores, axis=-1) @ v


def test_capped_attention_in_function_transformations():
    q, k, v = (mx.random.normal((2, 2, 5, 16)) for _ in range(3))
    mask = mx.tri(5, 5, dtype=mx.bool_)

    def ours(q, k, v):
        return fast.scaled_dot_product_attention(
            q, k, v, scale=1.0, cap=2.0, mask="causal"
        )

    def theirs(q, k, v):
        return capped(q, k, v, 2.0, mask)

    for found, expected in zip(
        *(
            (
                f(q, k, v),
                mx.compile(f)(q, k, v),
                *mx.grad(lambda *a, f=f: f(*a).square().sum(), (0, 1, 2))(q, k, v),
                mx.vmap(f)(*(a[:, None] for a in (q, k, v)))[:, 0],
            )
            for f in (ours, theirs)
        ),
        strict=True,
    ):
        assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_cap_needs_scores_without_sinks():
    q = mx.ones((1, 1, 1, 16))
    for cap, sinks in ((-1.0, None), (1.0, mx.ones(1)), (float("nan"), None)):
        with pytest.raises(ValueError, match="a cap of scores"):
            fast.scaled_dot_product_attention(q, q, q, scale=1.0, cap=cap, sinks=sinks)


def test_a_cache_of_another_type_needs_no_other_node():
    q = mx.random.normal((1, 4, 1, 64))
    cache = mx.random.normal((1, 2, 9, 64))
    mx.eval(q, cache)
    for dtypes in MIXED:
        kv = [cache.astype(DTYPES[name]) for name in dtypes]
        mx.eval(kv)
        y = fast.scaled_dot_product_attention(q, *kv, scale=0.1)
        assert node_names(y) == {"NibbleAttention": 1}


def test_attention_over_a_growing_cache(rng):
    """Take keys and values as slices of a buffer, as mlx-lm's cache returns them."""
    buffer = to_mlx(rng.standard_normal((2, 1, 3, 256, 64)), "float32")
    q = to_mlx(rng.standard_normal((1, 9, 1, 64)), "float32")
    for S in (1, 100, 255, 256):
        k, v = buffer[0, :, :, :S], buffer[1, :, :, :S]
        y = fast.scaled_dot_product_attention(q, k, v, scale=0.125)
        exact, allowed = layer_oracle.attention(*map(to_numpy, (q, k, v)), 0.125)
        assert_close(to_numpy(y), exact, allowed + 2.0**-24 * abs(exact))


def test_more_queries_than_keys_see_nothing_at_first(rng):
    q, k = mx.ones((1, 1, 5, 32)), mx.ones((1, 1, 3, 32))
    y = fast.scaled_dot_product_attention(q, k, k, scale=1.0, mask="causal")
    assert mx.array_equal(y[0, 0].max(-1), mx.array([0.0, 0, 1, 1, 1]))


def test_nan_is_not_swallowed():
    q = mx.ones((1, 1, 2, 32))
    k = mx.ones((1, 1, 40, 32))
    k[0, 0, 7, 3] = mx.nan
    y = fast.scaled_dot_product_attention(q, k, mx.ones(k.shape), scale=1.0)
    assert mx.isnan(y).all()
    x = mx.array([[mx.nan, 1.0]])
    assert (
        mx.isnan(fast.swiglu(x, x)[0, 0])
        and mx.isnan(fast.rms_norm(x, None, 1.0)).all()
    )


@pytest.mark.skipif("NIBBLE_CPU_ISA" in os.environ, reason="one instruction set only")
@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512"])
def test_every_instruction_set(isa):
    """Run the oracle's tests again: the instruction set is chosen at first use."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"NIBBLE_CPU_ISA": isa},
            capture_output=True,
            text=True,
        )

    if "must be one of" in run("-c", "import mlx_nibble").stderr:
        pytest.skip(f"this machine has no {isa}")
    result = run(
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", __file__),
        str(Path(__file__).with_name("test_not_finite.py")),
        str(Path(__file__).with_name("test_quantized_attention.py")),
        *("-k", "rms_norm or rope or swiglu or attention or argmax or not_finite"),
    )
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16])
def test_batch_invariant_attention_of_a_query_has_the_same_bits_in_any_company(
    dtype, group
):
    """Compare one query alone, four (as for a draft), and all of a prompt at once.

    The keys cross the borders of blocks and of the ranges of threads.
    """
    S, D = 1111, 40
    q = mx.random.normal((1, 2 * group, S, D)).astype(dtype)
    k, v = (mx.random.normal((1, 2, S, D)).astype(dtype) for _ in range(2))

    def attend(first, last):
        mask = "causal" if last - first > 1 else None
        rows = (k[:, :, :last], v[:, :, :last])
        return fast.scaled_dot_product_attention(
            q[:, :, first:last], *rows, scale=0.1, mask=mask, batch_invariant=True
        )

    whole = attend(0, S)
    for at in (0, 1, 127, 128, 255, 510, 511, 512, 600, 1023, 1024, S - 1):
        alone = attend(at, at + 1)
        assert mx.array_equal(whole[:, :, at : at + 1], alone)
        for first in (max(at - 3, 0), max(at - 40, 0)):
            last = min(first + 4 if at - first < 4 else first + 41, S)
            some = attend(first, last)
            assert mx.array_equal(some[:, :, at - first : at - first + 1], alone)


@pytest.mark.parametrize("first", [-70, -1, 0, 31, 4000])
def test_a_position_is_rotated_with_the_same_bits_in_any_company(first):
    x = mx.random.normal((1, 2, 150, 64))

    def rotate(rows, offset):
        return fast.rope(
            rows, 64, traditional=False, base=1e4, scale=1.0, offset=offset
        )

    whole = rotate(x, first)
    for begin, count in ((0, 1), (1, 4), (30, 4), (31, 1), (32, 1), (60, 90), (149, 1)):
        part = rotate(x[:, :, begin : begin + count], first + begin)
        assert mx.array_equal(part, whole[:, :, begin : begin + count])
