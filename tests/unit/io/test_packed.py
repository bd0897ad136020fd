"""Other tools' layouts, written here code by code as their formats define."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_nibble.io.packed import from_awq, from_compressed_tensors, from_gptq

N, K, G = 16, 128, 4


@pytest.fixture
def weight(rng):
    """Return 4-bit codes [N, K], scales [N, G] and integer zeros [N, G]."""
    codes = rng.integers(0, 16, (N, K))
    scales = rng.uniform(0.01, 0.02, (N, G)).astype(np.float16).astype(np.float32)
    return codes, scales, rng.integers(1, 16, (N, G))


def value(codes, scales, zeros, groups=None):
    groups = np.arange(K) // (K // G) if groups is None else groups
    return scales[:, groups] * (codes - zeros[:, groups])


def words(rows: np.ndarray, bits: int, order=None) -> np.ndarray:
    """Return codes [R, C] as int32 words, low bits first."""
    per = 32 // bits
    order = range(per) if order is None else order
    out = np.zeros((len(rows), rows.shape[1] // per), np.uint32)
    for i, row in enumerate(rows):
        for w in range(out.shape[1]):
            for slot, column in enumerate(order):
                out[i, w] |= np.uint32(int(row[w * per + column]) << (slot * bits))
    return out.view(np.int32)


def close(q, exact, scales):
    # The bias, at most 15 steps, is rounded to float16: a relative error of 2^-11.
    allowed = 15 * 2.0**-11 * np.repeat(scales, K // G, -1)
    assert (abs(q.dequantize() - exact) <= allowed).all()


def test_autoawq(weight):
    codes, scales, zeros = weight
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    q = from_awq(
        words(codes.T, 4, order), words(zeros.T, 4, order), scales.T, "float16"
    )
    np.testing.assert_array_equal(q.codes, codes)
    close(q, value(codes, scales, zeros), scales)


@pytest.mark.parametrize("zero_offset", [0, 1])
def test_gptq(weight, zero_offset):
    codes, scales, zeros = weight
    q, order = from_gptq(
        np.ascontiguousarray(words(codes, 4).T),
        words(zeros.T - zero_offset, 4),
        scales.T,
        np.arange(K) // (K // G),
        4,
        "float16",
        zero_offset=zero_offset,
    )
    assert order is None
    np.testing.assert_array_equal(q.codes, codes)
    close(q, value(codes, scales, zeros), scales)


def test_gptq_with_act_order_is_a_permutation_of_the_inputs(weight, rng):
    codes, scales, _ = weight
    zeros = np.full((N, G), 8)
    g_idx = rng.permutation(np.arange(K) // (K // G))
    q, order = from_gptq(
        np.ascontiguousarray(words(codes, 4).T),
        words(zeros.T - 1, 4),
        scales.T,
        g_idx,
        4,
        "float16",
    )
    assert order is not None
    exact = value(codes, scales, zeros, g_idx)
    np.testing.assert_array_equal(q.dequantize(), exact[:, order])
    x = rng.normal(size=K)
    np.testing.assert_allclose(q.dequantize() @ x[order], exact @ x, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_compressed_tensors_symmetric_is_exact(rng, bits):
    half = 2 ** (bits - 1)
    signed = rng.integers(-half, half, (N, K))
    scales = rng.uniform(0.01, 0.02, (N, G)).astype(np.float16).astype(np.float32)
    q, order = from_compressed_tensors(
        words(signed + half, bits), scales, None, np.full(K, -1), bits, "float16"
    )
    assert order is None
    exact = signed * np.repeat(scales, K // G, -1)
    np.testing.assert_array_equal(q.dequantize(), exact.astype(np.float32))


def test_compressed_tensors_with_zeros(weight):
    codes, scales, zeros = weight
    packed_zeros = np.ascontiguousarray(words(zeros.T, 4).T)
    q, _ = from_compressed_tensors(
        words(codes, 4), scales, packed_zeros, None, 4, "float16"
    )
    close(q, value(codes, scales, zeros), scales)


def test_compressed_tensors_with_act_order(weight, rng):
    codes, scales, _ = weight
    g_idx = rng.permutation(np.arange(K) // (K // G))
    q, order = from_compressed_tensors(
        words(codes, 4), scales, None, g_idx, 4, "float16"
    )
    exact = value(codes, scales, np.full((N, G), 8), g_idx)
    np.testing.assert_array_equal(q.dequantize(), exact[:, order])


def test_malformed_checkpoints_are_refused(weight):
    codes, scales, zeros = weight
    packed, z = np.ascontiguousarray(words(codes, 4).T), words(zeros.T - 1, 4)
    for g_idx, message in (
        (np.full(K, 9), "must name one of"),
        (np.zeros(K - 1, int), "must name one of"),
        (np.zeros(K, int), "same size"),
    ):
        with pytest.raises(ValueError, match=message):
            from_gptq(packed, z, scales.T, g_idx, 4, "float16")
    with pytest.raises(ValueError, match="are required"):
        from_gptq(packed, z, scales.T[:, :3], None, 4, "float16")
    with pytest.raises(ValueError, match="bits must be 2, 4 or 8"):
        from_gptq(packed, z, scales.T, None, 3, "float16")
