"""Every kind of call that MLX's own tests and mlx-lm's models make to the products.

A kind of call is the operation, mode, bits, group size, transposition, rank and type.
MLX's own suite (0.32.4, python/tests/test_quantized.py, on a CPU) makes 95 of them.
They were counted by replacing both operations by counters. The tests here include them:
every MLX format, transposed and not, every rank of x from 1 to 5, every type.

The ranks, batches and indices that mlx-lm's models use are recorded from a model of
each family. Each of these calls is made with every format and type.

Formats that our kernels support are compared with the float64 oracle, all others with
MLX itself, bit by bit.
"""

from __future__ import annotations

from itertools import product

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import ops
from mlx_nibble.acceleration.rebind import Rebinding
from mlx_nibble.formats import GROUP_SIZES
from mlx_nibble.numerics import UNIT_ROUNDOFF
from tests.support import families, tiny_models
from tests.support.arrays import DTYPES, to_mlx, to_numpy
from tests.support.mlx_formats import MLX_BITS
from tests.support.oracle import FloatWeights, Weights
from tests.support.tolerance import (
    assert_close,
    bound,
    integer_bound,
    integers,
    weight_dtype,
)

AFFINE = [("affine", bits, size) for bits, size in product(MLX_BITS, GROUP_SIZES)]
FLOATING = [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]
FORMATS = pytest.mark.parametrize(("mode", "bits", "group_size"), AFFINE + FLOATING)
N, K = 64, 128

# The calls of mlx-lm's models: operation, rank of x, rank of w, transposed, sorted.
# Keys for the batch dimensions of x and w, and for the shape of rhs_indices.
CALLS = {
    # QuantizedLinear, and QuantizedEmbedding.as_linear.
    ("quantized_matmul", 3, 2, True, None): ((2, 3), (), None),
    # Latent attention: one matrix for each head, transposed and not.
    ("quantized_matmul", 4, 3, True, None): ((2, 4, 3), (4,), None),
    ("quantized_matmul", 4, 3, False, None): ((2, 4, 3), (4,), None),
    # A quantized cache, scores and values: with and without shared heads.
    ("quantized_matmul", 4, 4, True, None): ((2, 4, 1), (2, 4), None),
    ("quantized_matmul", 4, 4, False, None): ((2, 4, 1), (2, 4), None),
    ("quantized_matmul", 5, 5, True, None): ((2, 2, 3, 1), (2, 2, 1), None),
    ("quantized_matmul", 5, 5, False, None): ((2, 2, 3, 1), (2, 2, 1), None),
    # Experts: unsorted for few tokens, sorted for many.
    ("gather_qmm", 5, 3, True, False): ((1, 3, 1, 1), (4,), (1, 3, 2)),
    ("gather_qmm", 3, 3, True, True): ((24, 1), (4,), (24,)),
}


def quantized(rng, shape, mode, bits, group_size, dtype):
    """Return arrays as MLX stores them, and their value."""
    w = to_mlx(rng.standard_normal(shape), dtype)
    # MLX's kernels for CUDA leave arrays of 1 bit unwritten.
    arrays = mx.quantize(w, group_size, bits, mode=mode, stream=mx.cpu)
    if mode != "affine":
        return (*arrays, None), FloatWeights(*map(np.array, arrays), mode)
    parts = (np.array(arrays[0]), *map(to_numpy, arrays[1:]))
    return arrays, Weights(*parts, bits, group_size)


def assert_right(y, same_by_mlx, x, weights, pick=None, transpose=True):
    """Return the oracle's result, or MLX's own if our kernels lack the format."""
    mode = getattr(weights, "mode", "affine")
    if not ops.supports(mode, weights.bits, weights.group_size):
        theirs = same_by_mlx()
        assert y.dtype == theirs.dtype and mx.array_equal(y, theirs, equal_nan=True)
        return
    assert y.dtype == x.dtype
    a = to_numpy(x).astype(np.float64)
    w_hat, magnitude = weights.dequantize(), weights.magnitude()
    if pick is not None:
        w_hat, magnitude = w_hat[pick], magnitude[pick]
    name = str(x.dtype).removeprefix("mlx.core.")
    off = 0
    if transpose:
        off = integer_bound(a, w_hat, weights.group_size, integers(name))
        off = off * (1 + UNIT_ROUNDOFF[name])
        w_hat, magnitude = w_hat.swapaxes(-1, -2), magnitude.swapaxes(-1, -2)
    exact = a @ w_hat
    w_dtype = weight_dtype(name, transpose)
    allowed = bound(exact, abs(a) @ magnitude, a.shape[-1], name, w_dtype) + off
    assert_close(to_numpy(y), exact, allowed)


@FORMATS
def test_quantized_matmul(mode, bits, group_size, rng):
    settings = dict(group_size=group_size, bits=bits, mode=mode)
    # Ranks of x and w: a vector, a matrix, batches of models, heads of latent
    # attention, and heads that share the keys of a quantized cache.
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
        # One for each rank; the last is sorted.
        cases = [((1,), (3,)), ((3, 1), (3,)), ((3, 1, 1), (3, chosen))]
        cases += [((2, 3, 1, 1), (2, 3, chosen)), ((24, 1), (24,))]
        for lead, picked in cases:
            ordered = lead == (24, 1)
            which = rng.integers(0, experts, picked).astype(np.uint32)
            which = np.sort(which) if ordered else which
            x = to_mlx(rng.standard_normal((*lead, inner)), dtype)
            call = dict(
                rhs_indices=mx.array(which),
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
                weights,
                pick=which,
                transpose=transpose,
            )


def recorded(model):
    """Return the kinds of calls of a model: prompt, decode, and a quantized cache."""
    calls = set()

    def recorder(name):
        def record(x, w, *args, transpose=True, **others):
            calls.add((name, x.ndim, w.ndim, transpose, others.get("sorted_indices")))
            return getattr(mx, name)(x, w, *args, transpose=transpose, **others)

        return record

    names = ("quantized_matmul", "gather_qmm")
    rebinding = Rebinding({f"mlx.core.{name}": recorder(name) for name in names})
    for module in model.modules():
        rebound = rebinding.subclass(type(module))
        if rebound is not None:
            module.__class__ = rebound.kind
    ids = tiny_models.tokens(1, 72)[0]
    model(ids)
    cache = make_prompt_cache(model)
    model(ids[:, :4], cache=cache)
    if model.model_type not in ("gemma3_text", "deepseek_v3"):  # mlx-lm has none there
        cache = [c.to_quantized(32, 8) for c in cache]
    model(ids[:, 4:5], cache=cache)
    return calls


def test_these_are_the_calls_that_mlx_lms_models_make():
    models = [families.stock(family) for family in families.FAMILIES]
    models.append(tiny_models.build("llama", num_key_value_heads=4, head_dim=32))
    nn.quantize(models[-1], 32, 4)
    assert set().union(*map(recorded, models)) == set(CALLS)


@FORMATS
@pytest.mark.parametrize("kind", CALLS, ids=lambda kind: "-".join(map(str, kind)))
def test_a_call_of_mlx_lms_models(kind, mode, bits, group_size, rng):
    name, _, _, transpose, ordered = kind
    lead, batch, picked = CALLS[kind]
    settings = dict(group_size=group_size, bits=bits, mode=mode, transpose=transpose)
    pick = None
    if picked is not None:
        pick = rng.integers(0, *batch, picked).astype(np.uint32)
        pick = np.sort(pick) if ordered else pick
        settings |= dict(rhs_indices=mx.array(pick), sorted_indices=ordered)
    for dtype in DTYPES:
        arrays, weights = quantized(
            rng, (*batch, N, K), mode, bits, group_size, dtype=dtype
        )
        x = to_mlx(rng.standard_normal((*lead, K if transpose else N)), dtype)
        assert_right(
            getattr(ops, name)(x, *arrays, **settings),
            lambda x=x, w=arrays: getattr(mx, name)(x, *w, **settings),
            x,
            weights,
            pick,
            transpose,
        )


@FORMATS
def test_dequantize(mode, bits, group_size, rng):
    """Dequantize rows, as an embedding does, and matrices, as LoRA's fuse does."""
    settings = dict(group_size=group_size, bits=bits, mode=mode)
    for dtype in DTYPES:
        arrays, _ = quantized(rng, (2, N, K), **settings, dtype=dtype)
        ours = ops.dequantize(*arrays, **settings)
        theirs = mx.dequantize(*arrays, **settings, stream=mx.cpu)
        assert ours.dtype == theirs.dtype
        if not ops.supports(mode, bits, group_size):
            assert mx.array_equal(ours, theirs)
            continue
        # Both round values of this size once or twice.
        slack = 2 * mx.finfo(ours.dtype).eps * mx.abs(theirs).max()
        assert mx.abs(ours - theirs).max() <= slack


def test_scales_of_another_type_than_the_activations(rng):
    """Compute in float32 with float16 scales, as prism_hadamard_qwen35 does."""
    (w, scales, biases), _ = quantized(rng, (N, K), "affine", 2, 128, "float16")
    parts = (np.array(w), to_numpy(scales), to_numpy(biases))
    x = to_mlx(rng.standard_normal((2, 3, K)), "float32")
    y = ops.quantized_matmul(
        x, w, scales, biases, transpose=True, group_size=128, bits=2
    )
    assert_right(y, None, x, Weights(*parts, 2, 128))
