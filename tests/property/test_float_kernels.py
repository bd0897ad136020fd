"""All codes and all scales of the modes of floats, in our Metal kernels."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import floats
from tests import simt
from tests.simt import numbers, plans
from tests.support import oracle, tolerance

pytestmark = pytest.mark.slow

MODES = tuple(oracle.FLOAT_MODES)


def of_mode(mode: str, dtype: str) -> simt.Problem:
    bits, group_size, *_ = oracle.FLOAT_MODES[mode]
    return simt.Problem(
        dtype=dtype,
        scale_dtype=plans.SCALES_OF[mode],
        bits=bits,
        group_size=group_size,
        mode=mode,
    )


def everything(mode: str) -> oracle.FloatWeights:
    """Return a row of w for each scale, with all codes: [256, K]."""
    bits, group_size, *_ = oracle.FLOAT_MODES[mode]
    K = max(2**bits, 32)
    codes = np.tile(np.arange(K) % 2**bits, (256, 1))
    scales = np.repeat(np.arange(256, dtype=np.uint8)[:, None], K // group_size, 1)
    return oracle.FloatWeights(oracle.pack(codes, bits), scales, mode)


@pytest.mark.parametrize("mode", MODES)
def test_dequantize_has_the_bits_of_mlx_for_all_codes_and_scales(mode: str) -> None:
    w = everything(mode)
    p = of_mode(mode, "float32")
    p = simt.Problem(**vars(p) | {"M": 256, "K": w.words.shape[-1] * 32 // p.bits})
    got = simt.dequantize(p, w.words, w.scales, None, simt.Options(instrumented=True))
    with mx.stream(mx.cpu):
        expected = np.array(
            mx.dequantize(
                *map(mx.array, (w.words, w.scales)),
                group_size=p.group_size,
                bits=p.bits,
                mode=mode,
                dtype=mx.float32,
            )
        )
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), ~number)
    np.testing.assert_array_equal(
        got.view(np.uint32)[number], expected.view(np.uint32)[number]
    )
    # The oracle is float64: it does not round what is too large for float32.
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got, w.dequantize().astype(np.float32))


@pytest.mark.parametrize("M", [1, 33])
@pytest.mark.parametrize("mode", MODES)
def test_products_keep_every_code_and_scale(mode: str, M: int) -> None:
    """Vectors add up codes before they scale; tiles scale each code."""
    w = everything(mode)
    p = of_mode(mode, "float32")
    # A NaN among the codes would hide all others of its row.
    codes = oracle.unpack(w.words, p.bits)
    codes = np.where(np.isfinite(floats.CODES[mode][codes]), codes, 0)
    # More columns than kernels for short rows take.
    copies = max(1, 256 // codes.shape[-1])
    words = oracle.pack(np.tile(codes, copies), p.bits)
    w = oracle.FloatWeights(words, np.tile(w.scales, copies), mode)
    K = copies * codes.shape[-1]
    x = np.ones((1, M, K), np.float32)
    # Positive and negative codes do not cancel.
    x[..., : K // 2] = 0.5
    p = simt.Problem(**vars(p) | {"M": M, "N": 256, "K": K})
    y = simt.matmul(p, w.words[None], w.scales[None], None, x)
    with np.errstate(invalid="ignore"):
        exact = oracle.matmul(x, w.dequantize())
        size = oracle.matmul(x, w.magnitude())
    number = size < np.finfo(np.float32).max
    allowed = tolerance.bound(exact, size, K, "float32")
    assert (abs(y - exact)[number] <= allowed[number]).all()
    # Infinite and NaN scales give no number.
    assert not np.isfinite(y[~np.isfinite(size)]).any()
    assert number.any() and (~np.isfinite(size)).any()


def test_the_special_scales_are_among_them() -> None:
    assert numbers.STORAGE["e8m0"] == numbers.STORAGE["e4m3"] == np.uint8
    assert floats.E8M0[0] == 2.0**-127 and floats.E8M0[254] == 2.0**127
    assert np.isinf(floats.E8M0[255]) and np.isnan(floats.E4M3[[127, 255]]).all()
