"""The layers between the products on each instruction set; Arm's run in qemu."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import numerics
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.cpu.request import DTYPES, Types
from tests.property.test_cpu import X86, start
from tests.simt import numbers
from tests.support.oracle import Weights, pack

pytestmark = pytest.mark.slow

# One instruction set for each file of layers: cmake/cpu.cmake.
SETS = [isa for isa in X86 if "vnni" not in isa] + ["neon"]
BAD = [np.nan, np.inf, -np.inf]
DTYPE = st.sampled_from(DTYPES)
SEED = st.integers(0, 2**32)
# Edges of vectors, and more than a block of keys.
WIDTH = st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 31, 64, 65, 130])


@pytest.fixture(params=SETS, scope="module")
def backend(request):
    return start(request.param)


def draw(seed: int, dtype: str, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape)
    return numbers.rounded(values.astype(np.float32), dtype).astype(np.float64)


def close(got: np.ndarray, exact: np.ndarray, magnitude, dtype: str, terms: int):
    """Compare within the rounding of `terms` float32 steps and of the result."""
    off = UNIT_ROUNDOFF["float32"] * terms * magnitude
    allowed = numerics.of_result(exact, off, dtype)
    assert (abs(got - exact) <= allowed).all(), abs(got - exact).max()


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return causal attention [M, heads, K] in float64."""
    rows, keys = q.shape[1], k.shape[1]
    scores = q @ k.swapaxes(1, 2) * np.float64(np.float32(q.shape[2]) ** -0.5)
    hidden = np.arange(keys) > keys - rows + np.arange(rows)[:, None]
    scores[:, hidden] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(0, 1)


@settings(max_examples=30)
@given(seed=SEED, dtype=DTYPE, rows=st.integers(1, 5), width=WIDTH)
def test_layers_agree_with_float64(backend, seed, dtype, rows, width):
    x, up = draw(seed, dtype, rows, width), draw(seed + 1, dtype, rows, width)
    got = backend.layer("layer_swiglu", dtype, x, up)
    exact = silu(x) * up
    close(got, exact, abs(exact), dtype, 32)

    weight = draw(seed + 2, dtype, width)
    got = backend.layer("rms_norm", dtype, x, weight)
    exact = x / np.sqrt((x**2).mean(-1, keepdims=True) + np.float32(1e-5)) * weight
    close(got, exact, abs(exact), dtype, width + 8)

    got = backend.layer("log_sum_exp", dtype, x)
    exact = np.log(np.exp(x).sum(-1))
    close(got, exact, 1 + abs(exact) + abs(x).max(-1), dtype, width + 32)


@settings(max_examples=30)
@given(
    seed=SEED,
    dtype=DTYPE,
    rows=st.integers(1, 3),
    width=WIDTH | st.sampled_from([511, 513, 32_769, 70_000]),
    values=st.sampled_from([BAD, [np.inf], [-np.inf], [np.nan], [-0.0, 0.0], []]),
)
def test_the_first_of_the_largest_is_found(backend, seed, dtype, rows, width, values):
    rng = np.random.default_rng(seed)
    x = draw(seed, dtype, rows, width)
    if rng.random() < 0.5:  # many equal ones, and a row without others
        x = np.round(x)
        x[0] = x[0, 0] if not values else values[0]
    for value in values:
        x[rng.integers(rows), rng.integers(width)] = value
    got = backend.layer("arg_max", dtype, x)
    np.testing.assert_array_equal(got, x.argmax(-1))


@settings(max_examples=30)
@given(
    seed=SEED,
    dtype=DTYPE,
    heads=st.integers(1, 3),
    rows=st.integers(1, 4),
    more=st.sampled_from([0, 1, 5, 126, 130, 300]),
    width=st.sampled_from([8, 17, 64]),
)
def test_attention_agrees_with_float64(backend, seed, dtype, heads, rows, more, width):
    q = draw(seed, dtype, heads, rows, width)
    k, v = (draw(seed + i, dtype, heads, rows + more, width) for i in (1, 2))
    got = backend.layer("attention", dtype, q, k, v)
    # A score is off by its own sum's rounding, which scales the weight.
    scores = np.sqrt(width) * abs(q).max() * abs(k).max()
    terms = 2 * width * max(1.0, scores) + rows + more + 32
    close(got, attention(q, k, v), abs(v).max(), dtype, terms)


@settings(max_examples=30)
@given(
    seed=SEED,
    dtype=DTYPE,
    scale_dtype=DTYPE,
    form=st.sampled_from([(2, 32), (4, 32), (4, 64), (8, 32), (8, 64), (8, 128)]),
    rows=st.sampled_from([1, 1, 3, 30]),
    more=st.sampled_from([0, 1, 31, 33, 126, 300]),
)
def test_attention_over_codes_agrees_with_float64(
    backend, seed, dtype, scale_dtype, form, rows, more
):
    bits, group_size = form
    rng = np.random.default_rng(seed)
    heads, width, count = 2, 128, rows + more

    def stored() -> Weights:
        codes = rng.integers(0, 1 << bits, (heads, count, width))
        scales = rng.uniform(0.2, 1, (heads, count, width // group_size))
        scales = numbers.rounded(np.float32(scales / (1 << bits)), scale_dtype)
        biases = scales * np.float32(-0.5 * (1 << bits))
        return Weights(pack(codes, bits), scales, biases, bits, group_size)

    q, keys, values = draw(seed, dtype, heads, rows, width), stored(), stored()
    types = Types(dtype, scale_dtype)
    got = backend.attention(q, keys, values, types)
    k, v = keys.dequantize(), values.dequantize()
    scores = np.sqrt(width) * abs(q).max() * keys.magnitude().max()
    terms = 2 * width * max(1.0, scores) + count + 32
    close(got, attention(q, k, v), values.magnitude().max(), dtype, terms)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("width", [1, 9, 64])
def test_what_is_not_finite_passes_as_in_float32(backend, value, width):
    """Each row is what NumPy's float32 gives; the other rows are as before."""
    x, up = (draw(i, "float32", 3, width) for i in (0, 1))
    weight = draw(2, "float32", width)
    at = width // 2
    before = {
        "layer_swiglu": backend.layer("layer_swiglu", "float32", x, up),
        "rms_norm": backend.layer("rms_norm", "float32", x, weight),
        "log_sum_exp": backend.layer("log_sum_exp", "float32", x),
    }
    x[1, at] = value
    with np.errstate(all="ignore"):
        total = np.exp(x[1]).sum()
        want = {
            "layer_swiglu": silu(x[1]) * up[1],
            "rms_norm": x[1] / np.sqrt((x[1] ** 2).mean() + 1e-5) * weight,
            "log_sum_exp": np.log(total),
        }
    for name, more in (
        ("layer_swiglu", (up,)),
        ("rms_norm", (weight,)),
        ("log_sum_exp", ()),
    ):
        got = backend.layer(name, "float32", x, *more)
        np.testing.assert_array_equal(got[::2], before[name][::2], name)
        np.testing.assert_array_equal(np.isnan(got[1]), np.isnan(want[name]), name)
        np.testing.assert_array_equal(np.isinf(got[1]), np.isinf(want[name]), name)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("operand", ["q", "k", "v"])
@pytest.mark.parametrize("keys", [5, 140])
def test_attention_passes_what_is_not_finite(backend, value, operand, keys):
    arrays = {
        "q": draw(0, "float32", 2, 3, 16),
        "k": draw(1, "float32", 2, keys, 16),
        "v": draw(2, "float32", 2, keys, 16),
    }
    before = backend.layer("attention", "float32", *arrays.values())
    # The last key: only the last row sees it. A hidden value has the weight 0, and
    # 0 times NaN is NaN, as in MLX.
    arrays[operand][1, -1, 4] = value
    got = backend.layer("attention", "float32", *arrays.values())
    with np.errstate(all="ignore"):
        want = attention(*arrays.values())
    np.testing.assert_array_equal(got[:, 0], before[:, 0])  # the other head
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isfinite(got), finite)
    np.testing.assert_allclose(got[finite], want[finite], atol=1e-4)
