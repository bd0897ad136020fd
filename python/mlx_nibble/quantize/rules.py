"""Rules of rounding to nearest, which depend on one group of weights alone.

Each rule takes a matrix `[..., N, K]` and returns a :class:`Quantized`.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.formats import Format, Quantized, grouped, round_to

# MLX's value: it prevents a division by zero in a group of equal weights.
_EPS = np.float32(1e-7)


def affine(weight: np.ndarray, form: Format) -> Quantized:
    """Apply MLX's rule, bit for bit equal to `mx.quantize` on the CPU.

    The edge of larger magnitude becomes an exact level, and so does zero if it lies
    within the group's range. Codes are chosen with the float32 scale, before scale and
    bias are rounded to the stored type.

    The error of an element that is not clipped is at most |scale|, plus the rounding of
    scale and bias.

    Args:
        weight: Values of `form.scale_dtype`, `[..., N, K]`.
        form: Format whose group size divides K.
    """
    w = _groups(weight, form)
    lo, hi = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    levels = np.float32(form.levels)
    if form.bits == 1:
        scale, bias = np.maximum(hi - lo, _EPS), lo
    else:
        low_edge = abs(lo) > abs(hi)
        scale = np.maximum((hi - lo) / levels, _EPS)
        scale = np.where(low_edge, scale, -scale)
        edge = np.where(low_edge, lo, hi)
        zero_code = np.rint(edge / scale)
        on_grid = zero_code != 0
        scale = np.where(on_grid, edge / np.where(on_grid, zero_code, 1), scale)
        bias = np.where(on_grid, edge, np.float32(0))
    codes = np.clip(np.rint((w - bias) / scale), 0, levels)
    return _quantized(codes, scale, bias, form)


def minmax(weight: np.ndarray, form: Format) -> Quantized:
    """Give the smallest weight of a group code 0 and the largest the last code.

    With `scale = (max - min) / (2**bits - 1)`, the error of an element is at most
    `scale / 2`, plus the rounding of scale and bias to the stored type.
    """
    w = _groups(weight, form)
    lo, hi = w.min(-1, keepdims=True), w.max(-1, keepdims=True)
    scale = round_to(np.maximum((hi - lo) / form.levels, _EPS), form.scale_dtype)
    return nearest(w, scale, round_to(lo, form.scale_dtype), form)


def symmetric(weight: np.ndarray, form: Format) -> Quantized:
    """Round with a scale only: `q = round(w / s)`.

    q is in `[-2**(bits-1), 2**(bits-1) - 1]`, and the scale is
    `max|w| / (2**(bits-1) - 1)`, so that nothing is clipped. The error of an element is
    at most `scale / 2`, plus the rounding of the scale. The stored bias is
    `-2**(bits-1) * scale`, which is exact in every type.
    """
    w = _groups(weight, form)
    half = 2 ** (form.bits - 1)
    largest = abs(w).max(-1, keepdims=True)
    scale = round_to(np.maximum(largest / max(half - 1, 1), _EPS), form.scale_dtype)
    return nearest(w, scale, -half * scale, form)


def nearest(
    groups: np.ndarray, scale: np.ndarray, bias: np.ndarray, form: Format
) -> Quantized:
    """Round `groups [..., N, G, g]` to the nearest level of a given grid."""
    codes = np.clip(np.rint((groups - bias) / scale), 0, form.levels)
    return _quantized(codes, scale, bias, form)


def _groups(weight: np.ndarray, form: Format) -> np.ndarray:
    if not form.fits(weight.shape[-1]):
        raise ValueError(
            f"[quantize] the inputs of a weight must be a multiple of the group size "
            f"{form.group_size} but got shape {weight.shape}."
        )
    return grouped(np.asarray(weight, np.float32), form.group_size)


def _quantized(
    codes: np.ndarray, scale: np.ndarray, bias: np.ndarray, form: Format
) -> Quantized:
    return Quantized(
        codes.astype(np.uint8).reshape(*codes.shape[:-2], -1),
        round_to(scale[..., 0], form.scale_dtype),
        round_to(bias[..., 0], form.scale_dtype),
        form.bits,
    )
