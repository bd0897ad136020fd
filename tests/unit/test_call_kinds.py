"""Every kind of call that MLX's own tests and mlx-lm's models make of the products.

MLX's suite makes 95 kinds of quantized_matmul and gather_qmm calls: mode, bits, group
size, transposition, ranks, type. Here each mode, width and group meets each
transposition, rank and type, and the shapes of mlx-lm's call sites; what our kernels
hold is compared with the float64 oracle, what they do not with MLX itself, bit by bit.
"""

from __future__ import annotations

from itertools import product

import mlx.core as mx
import numpy as np
import pytest

from mlx_nibble import ops
from tests.arrays import DTYPES, to_mlx, to_numpy
from tests.oracle import Weights
from tests.tolerance import assert_close, bound

AFFINE = [
    ("affine", bits, size)
    for bits, size in product((1, 2, 3, 4, 5, 6, 8), (32, 64, 128))
]
FLOATING = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
FORMATS = pytest.mark.parametrize(("mode", "bits", "group_size"), AFFINE + FLOATING)
N, K = 64, 128


def quantized(rng, shape, mode, bits, group_size, dtype):
    """Arrays as MLX stores them, and what they stand for if it is affine."""
    w = to_mlx(rng.standard_normal(shape), dtype)
    arrays = mx.quantize(w, group_size, bits, mode=mode)
    if mode != "affine":
        return (*arrays, None), None
    parts = (np.array(arrays[0]), *map(to_numpy, arrays[1:]))
    return arrays, Weights(*parts, bits, group_size)


def assert_right(y, same_by_mlx, x, w, weights, pick=None, transpose=True):
    """By the oracle, or MLX's own if the format is not ours."""
    if weights is None or not ops.holds("affine", weights.bits, weights.group_size):
        theirs = same_by_mlx()
        assert y.dtype == theirs.dtype and mx.array_equal(y, theirs, equal_nan=True)
        return
    assert y.dtype == x.dtype
    a = to_numpy(x).astype(np.float64)
    w_hat, magnitude = weights.dequantize(), weights.magnitude()
    if pick is not None:
        w_hat, magnitude = w_hat[pick], magnitude[pick]
    if transpose:
        w_hat, magnitude = w_hat.swapaxes(-1, -2), magnitude.swapaxes(-1, -2)
    exact = a @ w_hat
    name = str(x.dtype).removeprefix("mlx.core.")
    assert_close(
        to_numpy(y), exact, bound(exact, abs(a) @ magnitude, a.shape[-1], name)
    )


@FORMATS
def test_quantized_matmul(mode, bits, group_size, rng):
    settings = dict(group_size=group_size, bits=bits, mode=mode)
    # The ranks of x and w: a vector, a matrix, models' batches, MLA's heads, and the
    # heads that share the keys of a quantized cache.
    shapes = [
        ((), ()),
        ((5,), ()),
        ((2, 3), ()),
        ((2, 4, 3), (4,)),
        ((2, 2, 3, 1), (2, 2, 1)),
    ]
    for dtype, transpose in product(DTYPES, (True, False)):
        inner = K if transpose else N
        for lead, batch in shapes:
            arrays, weights = quantized(rng, (*batch, N, K), **settings, dtype=dtype)
            x = to_mlx(rng.standard_normal((*lead, inner)), dtype)
            call = dict(transpose=transpose, **settings)
            w, scales, biases = arrays
            y = ops.quantized_matmul(x, w, scales=scales, biases=biases, **call)
            assert_right(
                y,
                lambda x=x, w=arrays, call=call: mx.quantized_matmul(x, *w, **call),
                x,
                w,
                weights,
                transpose=transpose,
            )


@FORMATS
def test_gather_qmm(mode, bits, group_size, rng):
    settings = dict(group_size=group_size, bits=bits, mode=mode)
    experts, chosen = 4, 2
    for dtype, transpose in product(DTYPES, (True, False)):
        inner = K if transpose else N
        arrays, weights = quantized(rng, (experts, N, K), **settings, dtype=dtype)
        few = rng.integers(0, experts, (3, chosen)).astype(np.uint32)
        many = np.sort(rng.integers(0, experts, 24)).astype(np.uint32)
        # As SwitchGLU calls it: for a few tokens, and sorted for many.
        cases = [((3, 1, 1, inner), few, False), ((24, 1, inner), many, True)]
        for shape, indices, ordered in cases:
            x = to_mlx(rng.standard_normal(shape), dtype)
            call = dict(
                rhs_indices=mx.array(indices),
                transpose=transpose,
                sorted_indices=ordered,
                **settings,
            )
            w, scales, biases = arrays
            y = ops.gather_qmm(x, w, scales, biases, **call)
            assert_right(
                y,
                lambda x=x, w=arrays, call=call: mx.gather_qmm(x, *w, **call),
                x,
                w,
                weights,
                pick=indices,
                transpose=transpose,
            )


@FORMATS
def test_dequantize(mode, bits, group_size, rng):
    """Rows of an embedding, and whole matrices, as LoRA's fuse reads them."""
    settings = dict(group_size=group_size, bits=bits, mode=mode)
    for dtype in DTYPES:
        arrays, _ = quantized(rng, (2, N, K), **settings, dtype=dtype)
        ours = ops.dequantize(*arrays, **settings)
        theirs = mx.dequantize(*arrays, **settings)
        assert ours.dtype == theirs.dtype
        if not ops.holds(mode, bits, group_size):
            assert mx.array_equal(ours, theirs)
            continue
        # Both round once or twice from values of this size.
        slack = 2 * mx.finfo(ours.dtype).eps * mx.abs(theirs).max()
        assert mx.abs(ours - theirs).max() <= slack


def test_scales_of_another_type_than_the_activations(rng):
    """A model of float16 scales that computes in float32: prism_hadamard_qwen35."""
    (w, scales, biases), _ = quantized(rng, (N, K), "affine", 2, 128, "float16")
    parts = (np.array(w), to_numpy(scales), to_numpy(biases))
    x = to_mlx(rng.standard_normal((2, 3, K)), "float32")
    y = ops.quantized_matmul(
        x, w, scales, biases, transpose=True, group_size=128, bits=2
    )
    assert_right(y, None, x, w, Weights(*parts, 2, 128))
