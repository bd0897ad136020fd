"""The rules of one group: exact where stated, and always within their bounds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nibble.formats import BITS, GROUP_SIZES, SCALE_DTYPES, Format, Quantized
from mlx_nibble.numerics import UNIT_ROUNDOFF
from mlx_nibble.quantize import rules
from mlx_nibble.quantize.search import search
from tests.support.arrays import to_mlx, to_numpy

forms = st.builds(
    Format,
    bits=st.sampled_from(BITS),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_dtype=st.sampled_from(SCALE_DTYPES),
)


@st.composite
def weights(draw: st.DrawFn, form: Format) -> np.ndarray:
    """Draw weights [N, K] of the format's type, with several kinds of hard groups."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, groups = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    w = rng.normal(size=(rows, groups, form.group_size)) * draw(
        st.sampled_from([1e-3, 0.05, 1.0, 100.0])
    )
    w += draw(st.sampled_from([0.0, 0.0, 3.0, -3.0]))
    if draw(st.booleans()):
        w[0, 0] = draw(st.sampled_from([0.0, 0.3, -0.3]))
    if draw(st.booleans()):
        w[-1, -1, 0] *= 20
    w = w.reshape(rows, -1)
    return to_numpy(to_mlx(w, form.scale_dtype))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Format, np.ndarray]:
    form = draw(forms)
    return form, draw(weights(form))


def spread(per_group: np.ndarray, q: Quantized) -> np.ndarray:
    return np.repeat(per_group.astype(np.float64), q.group_size, -1)


def loss(w: np.ndarray, q: Quantized, importance=1.0) -> np.ndarray:
    error = (w.astype(np.float64) - q.dequantize()) ** 2 * importance
    return error.reshape(*q.scales.shape, -1).sum(-1)


@given(cases())
def test_affine_is_bit_exact_with_mlx(case):
    form, w = case
    words, scales, biases = mx.quantize(
        to_mlx(w, form.scale_dtype), form.group_size, form.bits
    )
    q = rules.affine(w, form)
    np.testing.assert_array_equal(q.words(), np.array(words))
    np.testing.assert_array_equal(q.scales, to_numpy(scales))
    np.testing.assert_array_equal(q.biases, to_numpy(biases))


@given(cases())
def test_minmax_errs_by_half_a_step(case):
    form, w = case
    q = rules.minmax(w, form)
    u = UNIT_ROUNDOFF[form.scale_dtype] + 4 * UNIT_ROUNDOFF["float32"]
    # Rounded scale and bias move the ends of the stored grid off the group's edges.
    reach = spread(q.scales, q) * form.levels + abs(spread(q.biases, q))
    allowed = spread(q.scales, q) / 2 + 2 * u * reach
    if form.scale_dtype == "float16":
        allowed = allowed + 2.0**-24 * form.levels  # subnormal scales
    assert (abs(w - q.dequantize().astype(np.float64)) <= allowed).all()


@given(cases())
def test_symmetric_errs_by_half_a_step_and_stores_no_bias_of_its_own(case):
    form, w = case
    if form.bits == 1:
        return  # its two levels, -s and 0, lack one sign
    q = rules.symmetric(w, form)
    np.testing.assert_array_equal(q.biases, -(2 ** (form.bits - 1)) * q.scales)
    u = UNIT_ROUNDOFF[form.scale_dtype] + 4 * UNIT_ROUNDOFF["float32"]
    allowed = spread(q.scales, q) * (0.5 + 2 * u * form.levels)
    if form.scale_dtype == "float16":
        allowed = allowed + 2.0**-24 * form.levels
    assert (abs(w - q.dequantize().astype(np.float64)) <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_coarser_scales_lose_more(rng, bits):
    w = rng.normal(size=(64, 256)).astype(np.float32)
    w *= np.exp(rng.normal(size=(64, 1)))
    losses = [
        loss(w, rules.minmax(w, Format(bits, group_size, "float32"))).sum()
        for group_size in (32, 64, 128)
    ]
    assert losses == sorted(losses)


@given(cases(), st.booleans(), st.integers(0, 2**32 - 1))
def test_search_is_never_worse_than_the_rules(case, weighed, seed):
    form, w = case
    importance = None
    if weighed:
        importance = np.random.default_rng(seed).exponential(size=w.shape[-1])
        importance = importance.astype(np.float32) + np.float32(1e-3)
    factor = 1.0 if importance is None else importance
    found = loss(w, search(w, form, importance), factor)
    for rule in (rules.affine, rules.minmax):
        other = rule(w, form)
        # Losses are compared in float32, so they include the rounding of w - w_hat.
        terms = (abs(w) ** 2 * factor).reshape(*found.shape, -1).sum(-1)
        u = UNIT_ROUNDOFF["float32"]
        limit = np.sqrt(loss(w, other, factor)) * (1 + 64 * u) + 8 * u * np.sqrt(terms)
        assert (np.sqrt(found) <= limit).all()


@given(
    group_size=st.sampled_from(GROUP_SIZES),
    bits=st.sampled_from([3, 4, 5, 6, 8]),
    unused=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_search_finds_the_lossless_grid(group_size, bits, unused, seed):
    rng = np.random.default_rng(seed)
    form = Format(bits, group_size, "float16")
    codes = rng.integers(0, 2**bits - unused, (5, 2 * group_size)).astype(np.uint8)
    codes[:, ::group_size] = 0
    codes[:, 1::group_size] = form.levels - unused
    scales = rng.uniform(0.01, 0.02, (5, 2)).astype(np.float16).astype(np.float32)
    biases = -scales * rng.uniform(3, 9, (5, 2))
    biases = biases.astype(np.float16).astype(np.float32)
    w = Quantized(codes, scales, biases, bits).dequantize()
    np.testing.assert_array_equal(search(w, form).dequantize(), w)


@given(bits=st.sampled_from([4, 8]), seed=st.integers(0, 2**32 - 1))
def test_search_finds_the_grids_of_q4_0_and_q8_0(bits, seed):
    rng = np.random.default_rng(seed)
    lowest = -8 if bits == 4 else -127
    signed = rng.integers(lowest, -lowest, (6, 64))
    signed[:, ::32] = lowest
    signed *= np.repeat(rng.choice([-1, 1], (6, 2)), 32, -1)
    scales = rng.uniform(0.01, 0.02, (6, 2)).astype(np.float16).astype(np.float32)
    w = (signed * np.repeat(scales, 32, -1)).astype(np.float32)
    found = search(w, Format(bits, 32, "float16"))
    np.testing.assert_array_equal(found.dequantize(), w)


def test_search_by_blocks_lowers_the_output_error_of_each_group(rng):
    w = rng.normal(size=(16, 128)).astype(np.float32)
    x = rng.normal(size=(500, 128)) * np.exp(rng.normal(size=128))
    blocks = np.stack([x[:, i : i + 64].T @ x[:, i : i + 64] for i in (0, 64)])
    form = Format(4, 64, "float32")

    def output_loss(q: Quantized) -> np.ndarray:
        delta = (w - q.dequantize()).reshape(16, 2, 64).astype(np.float64)
        return np.einsum("ngi,gij,ngj->ng", delta, blocks, delta)

    by_blocks = output_loss(search(w, form, blocks))
    assert (by_blocks <= output_loss(rules.minmax(w, form)) * (1 + 1e-4)).all()
    assert by_blocks.sum() < output_loss(search(w, form)).sum()


def test_shapes_are_checked():
    w = np.ones((4, 96), np.float32)
    for op in (rules.affine, search):
        with pytest.raises(ValueError, match="multiple of the group size 64"):
            op(w, Format(4, 64))
    with pytest.raises(ValueError, match="importance must have a shape"):
        search(w, Format(4, 32), np.ones(95, np.float32))
