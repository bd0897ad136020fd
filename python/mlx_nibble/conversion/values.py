"""Checks of values: no NaN, no infinity, nothing that a type cannot represent."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlx_nibble.formats import Quantized
from mlx_nibble.progress import Progress, silent

# The bits of a magnitude are an integer that grows with it. NaN's are the largest.
_MAGNITUDES = {
    mx.float16: (mx.uint16, 0x7FFF),
    mx.bfloat16: (mx.uint16, 0x7FFF),
    mx.float32: (mx.uint32, 0x7FFFFFFF),
}


def require_finite(name: str, value: mx.array, dtype: str | None = None) -> None:
    """Check that a tensor has no NaN and no infinity, in its type and in another.

    Args:
        name: Name of the tensor.
        value: The tensor; types that are not floating are not checked.
        dtype: Type that it is going to be rounded to.

    Raises:
        ValueError: If it has one.
    """
    if not mx.issubdtype(value.dtype, mx.floating) or not value.size:
        return
    top = largest(value)
    if not math.isfinite(top):
        raise ValueError(
            f"[convert] weights must be finite but {name!r} has "
            f"{'a NaN' if math.isnan(top) else 'an infinity'}."
        )
    if dtype is None:
        return
    nearest = mx.array(top, mx.float32).astype(getattr(mx, dtype))
    if not mx.isfinite(nearest).item():
        raise ValueError(
            f"[convert] weights must be in the range of {dtype} but the largest of "
            f"{name!r} is {top:.4g}: choose another --dtype."
        )


def require_unclipped(path: str, q: Quantized, dtype: str, top: float = 0.0) -> None:
    """Check that no scale and no bias was clipped to the range of its stored type.

    A clipped scale is finite, but stands for other weights.

    Args:
        path: Path of the matrix.
        q: The matrix.
        dtype: The stored type.
        top: The largest magnitude of the weights; a bias may be as large.

    Raises:
        ValueError: If one was clipped.
    """
    largest_of_type = mx.finfo(getattr(mx, dtype)).max
    scale, bias = (float(abs(a).max(initial=0)) for a in (q.scales, q.biases))
    if scale >= largest_of_type or (bias >= largest_of_type > top):
        raise ValueError(
            f"[convert] scales and biases must be in the range of {dtype} but some of "
            f"{path!r} are not: choose another --dtype."
        )


def rounded(name: str, value: mx.array, dtype: str | None) -> mx.array:
    """Return a tensor in another type, if it is floating and one is asked for.

    Raises:
        ValueError: If it has a NaN or an infinity, or is too large for the type.
    """
    if dtype is None or not mx.issubdtype(value.dtype, mx.floating):
        return value
    require_finite(name, value, dtype)
    return value.astype(getattr(mx, dtype))


def largest(value: mx.array) -> float:
    """Return the largest magnitude; NaN if there is one."""
    if value.dtype not in _MAGNITUDES:
        value = value.astype(mx.float32)
    kind, mask = _MAGNITUDES[value.dtype]
    top = mx.max(mx.view(value, kind) & mx.array(mask, kind))
    return np.array(mx.view(top, value.dtype).astype(mx.float32)).item()


def require_all_finite(
    values: dict[str, mx.array],
    dtype: str | None = None,
    progress: Progress = silent,
) -> None:
    """Check tensors in turn, and take each out of the dictionary, to free its memory.

    Raises:
        ValueError: If one has a NaN or an infinity, or is too large for `dtype`.
    """
    total = len(values)
    while values:
        progress("Checking the weights", total - len(values), total)
        name = next(iter(values))
        require_finite(name, values.pop(name), dtype)
    progress("Checking the weights", total, total)
