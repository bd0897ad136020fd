"""The rows that a call of a module multiplies by its weight.

A matrix is called as `module(x)`, experts as `module(x, indices)`, and a product for
each head as `module(x)` with heads in the third last dimension. A module may also do
something else: multiply by the weight's transpose, rotate its input, clip it. So the
result of the first call is compared with the product that the rows imply.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import to_numpy
from mlx_nibble.numerics import TF32_ROUNDOFF, UNIT_ROUNDOFF

# Rows of a call that are compared.
_COMPARED = 8


@dataclass(frozen=True)
class Rows:
    """Inputs of one call.

    Attributes:
        x: Rows, float32 `[T, K]`.
        matrix: Index of each row's matrix, for a weight `[E, N, K]`; None for `[N, K]`.
        tokens: Number of rows before they were repeated for several experts or heads.
    """

    x: np.ndarray
    matrix: np.ndarray | None
    tokens: int


def rows(module: nn.Module, x: Any, *args: Any, **kwargs: Any) -> Rows | None:
    """Return the rows of a call; None if its arguments are not understood."""
    *batch, _, width = module["weight"].shape
    if not _is_floating(x) or x.shape[-1] != width or len(batch) > 1:
        return None
    flat = to_numpy(x).reshape(-1, width)
    given = [a for a in (*args, *kwargs.values()) if isinstance(a, mx.array)]
    if not batch:
        return Rows(flat, None, len(flat)) if not given else None
    if len(given) == 1 and not _is_floating(given[0]):
        chosen = np.array(given[0]).reshape(-1)
        # Each row goes to one expert (rows are sorted), or to several in turn.
        repeats, rest = divmod(len(chosen), len(flat))
        if rest:
            return None
        return Rows(np.repeat(flat, repeats, 0), chosen, len(flat))
    if given or x.ndim < 3 or x.shape[-3] not in (1, batch[0]):
        return None
    heads = np.arange(batch[0])[:, None]
    every = np.broadcast_to(
        to_numpy(x), (*x.shape[:-3], batch[0], *x.shape[-2:])
    ).reshape(-1, width)
    owner = np.broadcast_to(heads, (*x.shape[:-3], batch[0], x.shape[-2]))
    return Rows(every, owner.reshape(-1), len(flat))


def is_product(module: nn.Module, found: Rows, result: Any) -> bool:
    """Tell whether a call's result is `x W^T + b` of its rows, but for rounding."""
    weight = module["weight"]
    if (
        not isinstance(result, mx.array)
        or result.size != len(found.x) * weight.shape[-2]
    ):
        return False
    step = max(1, len(found.x) // _COMPARED)
    got = to_numpy(result).reshape(-1, weight.shape[-2])[::step]
    for y, x, index in zip(got, found.x[::step], _owners(found)[::step], strict=True):
        w = to_numpy(weight if found.matrix is None else weight[int(index)])
        expected, slack = w @ x, abs(w) @ abs(x)
        if "bias" in module:
            bias = module["bias"]
            b = to_numpy(bias if found.matrix is None else bias[int(index)])
            expected, slack = expected + b, slack + abs(b)
        # Each operand or the result is rounded, and sums to float32.
        u = 2 * _roundoff(result.dtype) + len(x) * UNIT_ROUNDOFF["float32"]
        if (abs(y - expected) > u * slack).any():  # False for NaN, found elsewhere
            return False
    return True


def _roundoff(dtype: mx.Dtype) -> float:
    """Return the unit roundoff of a product's operands, or of its result."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    if on_gpu and dtype == mx.float32:
        return TF32_ROUNDOFF
    return UNIT_ROUNDOFF[str(dtype).removeprefix("mlx.core.")]


def _owners(found: Rows) -> np.ndarray:
    return np.zeros(len(found.x), int) if found.matrix is None else found.matrix


def _is_floating(x: Any) -> bool:
    return isinstance(x, mx.array) and mx.issubdtype(x.dtype, mx.floating)
