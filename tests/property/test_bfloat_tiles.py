"""Products of integer codes with many rows, in tiles of bfloat16 (AMX)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_nibble.formats import BITS
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.cpu.request import DTYPES, Types
from tests.cpu.runner import Runner
from tests.property.cpu_cases import COLUMNS, GROUPS, as_symmetric, make, start
from tests.support import oracle, tolerance
from tests.support.tolerance import ONE, TWO, TWO_OF_WEIGHTS

pytestmark = pytest.mark.slow

# Parts of tiles, whole ones, and two blocks of rows. Groups of 32 then have tiles in
# all forms, other groups with 300 rows, and not where both numbers are pairs.
ROWS = [64, 70, 128, 200, 300]
SHORT, ALL = [32], [32, 64, 128]
# Activations, what is allowed, the roundoffs of x and of weights, and groups.
ROUNDED = [
    ("bfloat16", {}, 0.0, TWO_OF_WEIGHTS, ALL),
    ("bfloat16", {"int8": True}, 0.0, ONE, ALL),
    ("float16", {}, 0.0, TWO_OF_WEIGHTS, SHORT),
    ("float16", {"int8": True}, ONE, ONE, ALL),
    ("float32", {"int16": True}, TWO, TWO_OF_WEIGHTS, SHORT),
    ("float32", {"int8": True}, ONE, ONE, ALL),
]


@pytest.fixture(scope="module")
def backend() -> Runner:
    amx = start("amx")
    if not amx.multiplies_bfloats():
        pytest.skip("this machine has no tiles of bfloat16")
    return amx


def allowed(x, w, dtype: str, roundoffs: tuple[float, float]) -> np.ndarray:
    """Return the bound of tiles."""
    exact = oracle.matmul(x, w.dequantize())
    scales = np.repeat(w.scales, w.group_size, -1)
    off = tolerance.bfloat_bound(x, w.dequantize(), *roundoffs, scales)
    magnitude = oracle.matmul(abs(x), w.magnitude())
    off = off * (1 + UNIT_ROUNDOFF[dtype])
    return off + tolerance.bound(exact, magnitude, x.shape[-1], dtype)


@pytest.mark.parametrize(("dtype", "how", "of_x", "of_w", "sizes"), ROUNDED)
@settings(max_examples=30)
@given(data=st.data(), seed=st.integers(0, 2**32))
def test_no_more_is_rounded_than_bfloat16_needs(
    backend, dtype, how, of_x, of_w, sizes, data, seed
):
    draw = data.draw
    group_size = draw(st.sampled_from(sizes))
    rows = draw(st.sampled_from(ROWS if group_size == 32 else ROWS[-1:]))
    types = Types(dtype, draw(st.sampled_from(DTYPES)))
    fmt = draw(st.sampled_from(BITS)), group_size
    packed, symmetric = draw(st.booleans()), draw(st.booleans())
    x, w = make(seed, fmt, types, (rows, draw(COLUMNS), draw(GROUPS), 1))
    stored, w = as_symmetric(w) if symmetric else (w, w)
    y = backend.matmul(x, stored, types, packed=packed, symmetric=symmetric, **how)
    off = allowed(x, w, dtype, (of_x, of_w))
    tolerance.assert_close(y, oracle.matmul(x, w.dequantize()), off)


@pytest.mark.parametrize("fmt", [(bits, 32) for bits in BITS])
def test_both_numbers_of_a_weight_take_part(backend, fmt):
    """Results have more than the 8 bits of one bfloat16."""
    types = Types("float32", "float32")
    x, w = make(0, fmt, types, (64, 40, 32, 0))
    exact = oracle.matmul(x, w.dequantize())
    magnitude = oracle.matmul(abs(x), abs(w.dequantize()))
    two, one = (
        abs(backend.matmul(x, w, types, **how) - exact) / magnitude
        for how in ({"int16": True}, {"int8": True})
    )
    assert two.max() < 2.0**-16 < one.max()


@pytest.mark.parametrize("packed", [False, True])
def test_few_rows_and_invariant_ones_are_integers(backend, packed):
    types = Types("float16", "float16")
    x, w = make(0, (4, 32), types, (64, 70, 6, 0))
    few = [backend.matmul(x[:, i : i + 8], w, types, packed=packed) for i in (0, 8)]
    form = {"invariant": True, "packed": packed}
    all_rows = backend.matmul(x, w, types, **form)
    np.testing.assert_array_equal(all_rows[:, :16], np.concatenate(few, 1))
    tiles = backend.matmul(x, w, types, packed=packed)
    assert (tiles != all_rows).any()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-42, 3e30, np.inf, np.nan])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("how", [{}, {"int8": True}])
def test_scales_that_tiles_cannot_hold_are_multiplied_exactly(
    backend, value, packed, how
):
    types = Types("bfloat16", "float32")
    x, w = make(0, (4, 32), types, (64, 100, 5, 0))
    scales, biases = w.scales.copy(), w.biases.copy()
    scales[0, 37] = value
    biases[0, 37] = -8 * value
    strange = replace(w, scales=scales, biases=biases)
    y = backend.matmul(x, strange, types, packed=packed, **how)
    ordinary = backend.matmul(x, w, types, packed=packed, **how)
    # Rows of other blocks are computed as before.
    others = np.r_[:32, 64:100]
    np.testing.assert_array_equal(y[..., others], ordinary[..., others])
    if not np.isfinite(value):
        assert not np.isfinite(y[..., 37]).any()
        return
    off = allowed(x, strange, types.dtype, (0.0, ONE if how else TWO_OF_WEIGHTS))
    exact = oracle.matmul(x, strange.dequantize())
    tolerance.assert_close(y, exact, off)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e-42])
@pytest.mark.parametrize("packed", [False, True])
def test_extreme_activations_stay_in_their_row(backend, value, packed):
    types = Types("float32", "float32")
    x, w = make(0, (4, 32), types, (70, 40, 3, 0))
    form = {"int16": True, "packed": packed}
    ordinary = backend.matmul(x, w, types, **form)
    x[0, 1, 20] = value
    y = backend.matmul(x, w, types, **form)
    exact = backend.matmul(x, w, types)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    np.testing.assert_array_equal(np.isposinf(y), np.isposinf(exact))
    np.testing.assert_array_equal(y[0, 2:], ordinary[0, 2:])
