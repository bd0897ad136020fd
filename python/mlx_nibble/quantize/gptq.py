"""GPTQ: round inputs one after another; later inputs compensate for earlier errors.

Frantar, Ashkboos, Hoefler, Alistarh: "GPTQ: Accurate Post-Training Quantization for
Generative Pre-trained Transformers", 2022.
"""

from __future__ import annotations

import numpy as np

from mlx_nibble.formats import Format, Quantized
from mlx_nibble.quantize.hessian import damped, diagonal_blocks, inverse_factor
from mlx_nibble.quantize.search import search
from mlx_nibble.quantize.threads import threads_for

# Number of inputs to round before one matrix product updates the rest. 32 rows of a
# few thousand floats stay in the second-level cache.
_BLOCK = 32


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    form: Format,
    *,
    damping: float = 0.01,
    act_order: bool = True,
    grid: Quantized | None = None,
) -> Quantized:
    r"""Quantize with the least error of the layer's output.

    The grids are static: scales and biases are chosen before any rounding. Hence
    `act_order` can round inputs in the order of their importance, while groups stay
    runs of consecutive inputs, as the format requires.

    Args:
        weight: Weight `[N, K]`.
        hessian: `X^T X` of the layer's inputs, `[K, K]`.
        form: Format to store it in; K is a multiple of its group size.
        damping: Share of the mean diagonal that is added to it.
        act_order: Round the inputs with the largest diagonal first.
        grid: Matrix with the scales and biases to use. Default: those of `search`,
            weighted by the Hessian's blocks.

    Raises:
        ValueError: If shapes do not fit together, or the Hessian is not finite.
    """
    require_hessian(weight, hessian)
    h = damped(hessian, damping)
    if grid is None:
        blocks = diagonal_blocks(hessian, form.group_size)
        grid = search(weight, form, blocks)
    order = np.arange(len(h))
    if act_order:
        order = np.argsort(-np.diagonal(hessian), kind="stable")
    factor = inverse_factor(h[np.ix_(order, order)]).astype(np.float32)
    with threads_for(_BLOCK * weight.size):  # half of the inputs are left on average
        codes = _round_in_order(weight, factor, order, grid)
    return Quantized(codes, grid.scales, grid.biases, grid.bits)


def require_hessian(weight: np.ndarray, hessian: np.ndarray) -> None:
    """Check that a Hessian belongs to a weight.

    Raises:
        ValueError: If it does not.
    """
    if weight.ndim != 2 or hessian.shape != (weight.shape[1],) * 2:
        raise ValueError(
            "[gptq] weight [N, K] and hessian [K, K] are required but got shapes "
            f"{weight.shape} and {hessian.shape}."
        )


def _round_in_order(
    weight: np.ndarray, factor: np.ndarray, order: np.ndarray, grid: Quantized
) -> np.ndarray:
    """Return codes [N, K]: GPTQ's loop, on [K, N] so that an input is contiguous."""
    levels = 2**grid.bits - 1
    group = order // grid.group_size
    # All rows are in the order of rounding: row j is rounded as the j-th.
    left = np.ascontiguousarray(weight.T[order], np.float32)
    scales = np.ascontiguousarray(grid.scales.T)
    biases = np.ascontiguousarray(grid.biases.T)
    codes = np.empty(left.shape, np.uint8)
    for start in range(0, len(left), _BLOCK):
        stop = min(start + _BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]), np.float32)
        for j in range(start, stop):
            scale, bias = scales[group[j]], biases[group[j]]
            code = np.clip(np.rint((left[j] - bias) / scale), 0, levels)
            codes[j] = code
            error = (left[j] - (code * scale + bias)) / factor[j, j]
            left[j + 1 : stop] -= factor[j, j + 1 : stop, None] * error
            errors[j - start] = error
        left[stop:] -= factor[start:stop, stop:].T @ errors
    unordered = np.empty_like(codes)
    unordered[order] = codes
    return np.ascontiguousarray(unordered.T)
