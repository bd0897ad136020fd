"""Recognise matrices whose biases our kernels need not read.

A symmetric format has ``w_hat = s * (q - 2**(bits - 1))``. Examples are GGUF's Q4_0 and
Q8_0, and the 2-bit matrices of :func:`mx.quantize`. It is stored as an affine format
with ``b = -2**(bits - 1) * s``. If this is exact for every group, our kernels compute b
from s, and read 2 or 4 bytes less for each group.

The result belongs to the array objects: every call of an operation with them uses it.
An array that replaces one of them, a tracer of a transformation and an array that was
written to are other objects, without a result.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable

import mlx.core as mx

from mlx_nibble import _native

_watched: dict[int, weakref.ref] = {}


def recognise(matrices: Iterable[tuple[mx.array, mx.array, int]]) -> list[bool]:
    """Find the symmetric matrices, and remember them.

    Evaluates the first groups of scales and biases, and all others only if these are
    symmetric.

    Args:
        matrices: Scales and biases ``[..., N, K / group_size]``, and the bits.

    Returns:
        True for each symmetric matrix.
    """
    every = list(matrices)
    first = [
        _holds(scales.reshape(-1)[:_FIRST], biases.reshape(-1)[:_FIRST], bits)
        for scales, biases, bits in every
    ]
    mx.eval(first)
    answers = []
    for (scales, biases, bits), so_far in zip(every, first, strict=True):
        # One matrix at a time, for a comparison allocates memory.
        answers.append(bool(so_far) and bool(_holds(scales, biases, bits)))
        if answers[-1] and _native.ext is not None:
            token = _native.ext.remember_symmetric(scales, biases, bits)
            _watched[token] = weakref.ref(biases, lambda _, token=token: _forget(token))
    return answers


def are_known(biases: Iterable[mx.array]) -> list[bool]:
    """Return whether each of these biases was found to be redundant."""
    known = {id(watched()) for watched in _watched.values()}
    return [id(array) in known for array in biases]


# Number of groups to compare first. Up to three in four of the 4-bit groups from
# mx.quantize are symmetric by chance; 64 in a row are not.
_FIRST = 64


def _holds(scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    # A power of two: the product is exact in float32 for every type, unless it
    # overflows.
    zero = -float(2 ** (bits - 1))
    expected = zero * scales.astype(mx.float32)
    return mx.array_equal(expected, biases.astype(mx.float32))


def _forget(token: int) -> None:
    _watched.pop(token, None)
    _native.ext.forget_symmetric(token)  # pyright: ignore[reportOptionalMemberAccess]
