"""Products of codes that are floats, in tiles of bfloat16 (AMX)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble import floats
from mlx_nibble.formats import FLOAT_MODES, MODES
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.cpu.request import Types
from tests.cpu.runner import Runner
from tests.property.cpu_cases import COLUMNS, make, start
from tests.simt import numbers
from tests.support import oracle, tolerance

pytestmark = pytest.mark.slow

# One left tile, several, several passes, and a part of a tile.
ROWS = st.sampled_from([1, 2, 7, 8, 9, 16, 17, 33, 70])
# Activations, what is allowed, and the roundoff of the tiles.
ROUNDED = [
    ("bfloat16", {}, 0.0),
    ("float16", {}, 0.0),
    ("float32", {"int16": True}, 2.0**-16),
    ("float32", {"int8": True}, 2.0**-8),
]


@pytest.fixture(scope="module")
def backend() -> Runner:
    amx = start("amx")
    if not amx.multiplies_bfloats():
        pytest.skip("this machine has no tiles of bfloat16")
    return amx


def check(backend: Runner, x, w, dtype: str, allowed: dict, roundoff: float, **form):
    types = Types(dtype, "float32")
    # Without it few rows of E2M1 are integers.
    y = backend.matmul(x, w, types, invariant=True, **allowed, **form)
    w_hat = w.dequantize()
    exact = oracle.matmul(x, w_hat)
    off = tolerance.bfloat_bound(x, w_hat, roundoff)
    off = off * (1 + UNIT_ROUNDOFF[dtype])
    magnitude = oracle.matmul(abs(x), w.magnitude())
    off = off + tolerance.bound(exact, magnitude, x.shape[-1], dtype)
    tolerance.assert_close(y, exact, off)
    return y


@pytest.mark.parametrize(("dtype", "allowed", "roundoff"), ROUNDED)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32),
    mode=st.sampled_from(FLOAT_MODES),
    rows=ROWS,
    N=COLUMNS,
    groups=st.sampled_from([1, 2, 3, 7, 8, 9, 17, 40]),
    spread=st.sampled_from([0, 1, 8]),
    packed=st.booleans(),
)
def test_no_more_is_rounded_than_bfloat16_needs(
    backend, dtype, allowed, roundoff, seed, mode, rows, N, groups, spread, packed
):
    """16-bit activations are exact, in groups of any spread."""
    if dtype == "float16":
        spread = min(spread, 1)  # sums are within the type
    x, w = make(seed, mode, Types(dtype, "float32"), (rows, N, groups, spread))
    check(backend, x, w, dtype, allowed, roundoff, packed=packed)


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("dtype", "allowed", "roundoff"), ROUNDED)
def test_all_codes_meet_all_scales(backend, mode, packed, dtype, allowed, roundoff):
    """Scales that bfloat16 cannot hold are multiplied exactly."""
    row = MODES[mode]
    (bits,), (group_size,) = row.bits, row.group_sizes
    codes = np.arange(max(2**bits, 2 * group_size)) % 2**bits
    codes = np.where(np.isfinite(floats.CODES[mode][codes]), codes, 0)
    known = np.isfinite(floats.E4M3 if mode == "nvfp4" else floats.E8M0)
    scales = np.flatnonzero(known).astype(np.uint8)[:, None]
    words = np.tile(oracle.pack(codes, bits), (len(scales), 1))
    scales = np.repeat(scales, len(codes) // group_size, 1)
    w = oracle.FloatWeights(words[None], scales[None], mode)
    rng = np.random.default_rng(0)
    x = numbers.rounded(rng.standard_normal((1, 9, len(codes))), dtype)
    # The largest products are beyond the type.
    first, end = {"float32": (0, 237), "bfloat16": (0, 237), "float16": (110, 130)}[
        dtype
    ]
    kept = slice(None) if mode == "nvfp4" else slice(first, end)
    w = replace(w, words=w.words[:, kept], scales=w.scales[:, kept])
    check(backend, x, w, dtype, allowed, roundoff, packed=packed)


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_scale_or_code_that_is_nan_stays_in_its_row(backend, mode, packed):
    types = Types("bfloat16", "float32")
    x, w = make(0, mode, types, (9, 70, 6, 0))
    scales, words = w.scales.copy(), w.words.copy()
    scales[0, 33, 1] = 255
    if mode == "mxfp8":
        words[0, 3, 2] |= 0x7F00
    broken = replace(w, words=words, scales=scales)
    y = backend.matmul(x, broken, types, packed=packed)
    lost = [33, 3] if mode == "mxfp8" else [33]
    assert not np.isfinite(y[0][:, lost]).any()
    exact = backend.matmul(x, w, types, packed=packed)
    others = np.delete(y[0], lost, axis=1)
    assert np.isfinite(others).all()
    # Rows of other blocks are computed as before.
    np.testing.assert_array_equal(y[0][:, 64:], exact[0][:, 64:])


@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("scale", [0, 1, 200, 254])
def test_zeros_of_any_scale_are_zeros(backend, mode, scale):
    types = Types("bfloat16", "float32")
    x, w = make(0, mode, types, (3, 40, 4, 0))
    words, scales = w.words.copy(), w.scales.copy()
    words[0, 5] = 0
    scales[0, 5] = 0x7E if mode == "nvfp4" else scale
    y = backend.matmul(x, replace(w, words=words, scales=scales), types)
    assert not y[0, :, 5].any()
    np.testing.assert_array_equal(
        np.delete(y[0], 5, 1), np.delete(backend.matmul(x, w, types)[0], 5, 1)
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-42])
@pytest.mark.parametrize("mode", FLOAT_MODES)
@pytest.mark.parametrize("packed", [False, True])
def test_extreme_activations_stay_in_their_row(backend, value, mode, packed):
    types = Types("float32", "float32")
    x, w = make(0, mode, types, (3, 40, 3, 0))
    ordinary = backend.matmul(x, w, types, int16=True, packed=packed)
    x[0, 1, 20] = value
    y = backend.matmul(x, w, types, int16=True, packed=packed)
    exact = backend.matmul(x, w, types)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(exact))
    np.testing.assert_array_equal(y[0, ::2], ordinary[0, ::2])
