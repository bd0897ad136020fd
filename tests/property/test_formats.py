"""Packing and rounding equal MLX's, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nibble import formats
from mlx_nibble.formats import BITS, GROUP_SIZES, SCALE_DTYPES, Format
from tests.support import oracle
from tests.support.arrays import DTYPES, to_numpy


@given(
    bits=st.sampled_from(BITS),
    rows=st.integers(1, 5),
    words=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_packing_is_a_bit_stream_and_is_undone(bits, rows, words, seed):
    codes = np.random.default_rng(seed).integers(
        0, 2**bits, (rows, 32 * words), np.uint8
    )
    packed = formats.pack(codes, bits)
    assert packed.dtype == np.uint32
    np.testing.assert_array_equal(packed, oracle.pack(codes, bits))
    np.testing.assert_array_equal(formats.unpack(packed, bits), codes)


@given(
    dtype=st.sampled_from(SCALE_DTYPES),
    values=st.lists(st.floats(width=32, min_value=-6e4, max_value=6e4), min_size=1),
)
def test_rounding_is_mlx_rounding(dtype, values):
    a = np.array(values, np.float32)
    expected = to_numpy(mx.array(a).astype(DTYPES[dtype]))
    np.testing.assert_array_equal(formats.round_to(a, dtype), expected)


def test_rounding_never_makes_an_infinity():
    assert formats.round_to(np.float32([1e30, -1e30]), "float16").tolist() == [
        65504,
        -65504,
    ]


@given(bits=st.sampled_from(BITS), group_size=st.sampled_from(GROUP_SIZES))
def test_bytes_are_those_of_mlx(bits, group_size):
    form = Format(bits, group_size)
    parts = mx.quantize(mx.ones((6, 256), mx.float16), group_size, bits)
    assert form.nbytes(6, 256) == sum(p.nbytes for p in parts)


@pytest.mark.parametrize(
    "wrong", [{"bits": 7}, {"group_size": 16}, {"scale_dtype": "int8"}]
)
def test_a_format_that_mlx_lacks_is_refused(wrong):
    with pytest.raises(ValueError, match=r"^\[format\] .* must be one of"):
        Format(**wrong)
