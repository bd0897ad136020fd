"""Recognise matrices whose biases need not be read.

A symmetric format, such as GGUF's Q4_0 and Q8_0, and what :func:`mx.quantize` makes of
2 bits, has ``w_hat = s * (q - 2**(bits-1))``
and is stored as an affine one with ``b = -2**(bits - 1) * s``. Where that holds of
every group exactly, our kernels compute b from s, and read 2 or 4 bytes a group less.

What was recognised is known of these very arrays: the operations look it up, whoever
calls them. An array that replaces one of them, a tracer of a transformation and an
array that was written to are others, of which nothing is known.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import mlx.core as mx

from mlx_nibble import _native

_watched: dict[int, weakref.ref] = {}


def recognise(matrices: Iterable[tuple[mx.array, mx.array, int]]) -> list[bool]:
    """Find out which matrices are symmetric, and remember it.

    Evaluates scales and biases; all of them only where the first row is symmetric.

    Args:
        matrices: Scales and biases ``[..., N, K / group_size]``, and the bits.

    Returns:
        The answer for each.
    """
    every = list(matrices)
    first = [
        _holds(scales.reshape(-1)[:_FIRST], biases.reshape(-1)[:_FIRST], bits)
        for scales, biases, bits in every
    ]
    mx.eval(first)
    answers = []
    for (scales, biases, bits), so_far in zip(every, first, strict=True):
        # One after the other: a comparison takes memory.
        answers.append(bool(so_far) and bool(_holds(scales, biases, bits)))
        if answers[-1] and _native.ext is not None:
            token = _native.ext.remember_symmetric(scales, biases, bits)
            _watched[token] = weakref.ref(biases, lambda _, token=token: _forget(token))
    return answers


# Groups that are looked at first. Of those that mx.quantize makes of 4 bits, up to
# three in four happen to be symmetric; 64 in a row are not.
_FIRST = 64


def _holds(scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    # Exact in float32, for every type and unless it overflows: a power of two.
    zero = -float(2 ** (bits - 1))
    expected = zero * scales.astype(mx.float32)
    return mx.array_equal(expected, biases.astype(mx.float32))


def _forget(token: int) -> None:
    _watched.pop(token, None)
    _native.ext.forget_symmetric(token)  # pyright: ignore[reportOptionalMemberAccess]
