"""MLX's dense layers, computed with NumPy's BLAS on a CPU.

MLX's Linux wheel has the reference BLAS: 2 to 3 GFLOP/s, where NumPy's OpenBLAS reaches
50 to 100 on the same two cores. Calibration and evaluation are dense products of long
sequences, so they run inside :func:`fast_dense`. On a GPU it changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np


@contextmanager
def fast_dense() -> Iterator[None]:
    """Compute linear layers and attention with NumPy inside the context, on a CPU.

    Products are float32 and rounded to the type of the input. Each of them evaluates
    the lazy graph, for NumPy needs values.
    """
    if mx.default_device().type != mx.DeviceType.cpu:
        yield
        return
    with ExitStack() as stack:
        for owner, name, replacement in (
            (nn.Linear, "__call__", _linear),
            (nn.Embedding, "as_linear", _as_linear),
            (mx.fast, "scaled_dot_product_attention", _attention),
            (mx, "gather_mm", _gather_mm),
        ):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, replacement)
        yield


def to_numpy(a: mx.array) -> np.ndarray:
    """Return a view of a float32 array, or a float32 copy of another array."""
    return np.array(a.astype(mx.float32), copy=False)


def product(x: mx.array, weight: mx.array) -> mx.array:
    """Return `x @ weight.T`, computed with NumPy's BLAS."""
    a = to_numpy(x).reshape(-1, x.shape[-1])
    y = a @ to_numpy(weight).T
    return mx.array(y.reshape(*x.shape[:-1], -1)).astype(x.dtype)


def _linear(self: nn.Linear, x: mx.array) -> mx.array:
    y = product(x, self["weight"])
    return y + self["bias"] if "bias" in self else y


def _as_linear(self: nn.Embedding, x: mx.array) -> mx.array:
    return product(x, self["weight"])


def _attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
    **_: Any,
) -> mx.array:
    """Replace mx.fast's attention; q is `[B, H, L, D]`, k and v are `[B, h, S, D]`."""
    batch, heads, length, width = q.shape
    groups = heads // k.shape[1]
    grouped = to_numpy(q).reshape(batch, k.shape[1], groups * length, width)
    scores = grouped @ to_numpy(k).swapaxes(-1, -2)
    scores *= np.float32(scale)
    scores = scores.reshape(batch, heads, length, -1)
    _apply_mask(scores, mask)
    # A sink is one more key, with a value of zero; without sinks its weight is zero.
    sink = np.float32(-np.inf) if sinks is None else to_numpy(sinks)[:, None, None]
    largest = np.maximum(scores.max(-1, keepdims=True), sink)
    scores -= largest
    np.exp(scores, out=scores)
    scores /= scores.sum(-1, keepdims=True) + np.exp(sink - largest)
    flat = scores.reshape(batch, k.shape[1], groups * length, -1)
    y = (flat @ to_numpy(v)).reshape(batch, heads, length, -1)
    return mx.array(y).astype(q.dtype)


def _apply_mask(scores: np.ndarray, mask: mx.array | str | None) -> None:
    if mask is None:
        return
    lowest = np.finfo(np.float32).min
    if isinstance(mask, str):
        length, keys = scores.shape[-2:]
        hidden = np.triu(np.ones((length, keys), bool), keys - length + 1)
        scores[..., hidden] = lowest
    elif mask.dtype == mx.bool_:
        keep = np.broadcast_to(np.array(mask), scores.shape)
        np.copyto(scores, lowest, where=~keep)
    else:
        scores += to_numpy(mask)


def _gather_mm(
    a: mx.array,
    b: mx.array,
    /,
    lhs_indices: mx.array | None = None,
    rhs_indices: mx.array | None = None,
    **_: Any,
) -> mx.array:
    """Replace `mx.gather_mm`: one product for each matrix of b that is used."""
    left, right = to_numpy(a), to_numpy(b)
    rows = _flat_indices(lhs_indices, left.shape[:-2])
    experts = _flat_indices(rhs_indices, right.shape[:-2])
    rows, experts = np.broadcast_arrays(rows, experts)
    left = left.reshape(-1, *left.shape[-2:])
    right = right.reshape(-1, *right.shape[-2:])
    shape = (*rows.shape, left.shape[-2], right.shape[-1])
    y = np.empty((rows.size, *shape[-2:]), np.float32)
    for expert in np.unique(experts):
        (picked,) = np.nonzero(experts.ravel() == expert)
        y[picked] = left[rows.ravel()[picked]] @ right[expert]
    return mx.array(y.reshape(shape)).astype(a.dtype)


def _flat_indices(indices: mx.array | None, batch: tuple[int, ...]) -> np.ndarray:
    if indices is not None:
        return np.array(indices)
    return np.arange(int(np.prod(batch))).reshape(batch)
