"""AWQ of a decoder layer: scales are searched, then folded into the layer.

The recipe is the paper's and mlx-lm's. The scales of an input are a power of its
magnitude. For each power the weights of the block (the attention, the MLP) are scaled,
rounded to nearest and scaled back; the power that changes the block's output least is
chosen. In addition, scales of the output projection fold into the value projection,
for any number of query heads of a value head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.conversion.fold import Fold, block_of, folds, values
from mlx_nibble.formats import Format
from mlx_nibble.layerwise.cpu_math import to_numpy
from mlx_nibble.layerwise.hessians import not_finite, token_factors
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import copied
from mlx_nibble.quantize.awq import candidates
from mlx_nibble.quantize.rules import affine

Calls = list[tuple[tuple, dict[str, Any]]]


def fold_scales(
    layer: nn.Module,
    formats: Mapping[str, Format],
    run: Callable[[int], Any],
    count: int,
) -> None:
    """Scale the inputs of a decoder layer; the layer's output stays the same.

    Args:
        layer: A layer in float32.
        formats: Format of each matrix to store, by path within the layer; others are
            scaled but not rounded.
        run: Function that calls the layer on batch i of the calibration text.
        count: Number of batches.
    """
    for fold in list(folds(layer, lambda: run(0))):
        s = _search(layer, fold, formats, run, count)
        if s is not None:
            fold.apply(s)


def _search(
    layer: nn.Module,
    fold: Fold,
    formats: Mapping[str, Format],
    run: Callable[[int], Any],
    count: int,
) -> np.ndarray | None:
    """Return the best scales of one input; None if none of its matrices is rounded."""
    rounded = {p: m for p, m in fold.consumers.items() if p in formats}
    if not rounded:
        return None
    name, first = next(iter(rounded.items()))
    around = name if len(fold.consumers) == 1 else block_of(list(fold.consumers))
    block, calls, magnitude = _record(layer, around, first, run, count)
    if not np.isfinite(magnitude).all():
        raise not_finite(f"inputs of {name}")
    expected = [values(block(*args, **kwargs)) for args, kwargs in copied(calls)]
    weights = {path: module["weight"] for path, module in rounded.items()}

    def error(s: np.ndarray) -> float:
        for path, weight in weights.items():
            approx = affine(to_numpy(weight) * s, formats[path]).dequantize() / s
            rounded[path]["weight"] = mx.array(approx)
        return sum(
            _distance(y, values(block(*args, **kwargs)))
            for y, (args, kwargs) in zip(expected, copied(calls), strict=True)
        )

    try:
        return min(candidates(fold.tie(magnitude)), key=error)
    finally:
        for path, weight in weights.items():
            rounded[path]["weight"] = weight


def _distance(expected: list[np.ndarray], got: list[np.ndarray]) -> float:
    total = 0.0
    for y, x in zip(got, expected, strict=True):
        rows = x.reshape(-1, x.shape[-1])
        delta = (y.reshape(rows.shape) - rows) * token_factors(rows)
        total += float(np.square(delta).sum(dtype=np.float64))
    return total


def _record(
    layer: nn.Module,
    around: str,
    first: nn.Module,
    run: Callable[[int], Any],
    count: int,
) -> tuple[nn.Module, Calls, np.ndarray]:
    """Return a block, its calls, and the mean magnitude of a module's inputs.

    The block is the module at the path `around`, or the smallest one around it that is
    called itself.
    """
    modules = dict(layer.named_modules())
    names = around.split(".") if around else []
    paths = [".".join(names[:i]) for i in range(len(names) + 1)]
    calls: dict[str, Calls] = {path: [] for path in paths}
    magnitudes: list[np.ndarray] = []

    def see_call(path: str) -> Hook:
        def see(original: Callable, *args: Any, **kwargs: Any) -> Any:
            calls[path].append(copied((args, kwargs)))
            return original(*args, **kwargs)

        return see

    def see_input(original: Callable, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        magnitudes.append(abs(to_numpy(x)).reshape(-1, x.shape[-1]).mean(0))
        return original(x, *args, **kwargs)

    # A module that is its own block has two hooks: that of the input is the inner one.
    hooks: list[tuple[nn.Module, Hook]] = [(first, see_input)]
    hooks += [(modules[p], see_call(p)) for p in paths if callable(modules.get(p))]
    with intercepted(hooks):
        for i in range(count):
            run(i)
    path = next(path for path in reversed(paths) if calls[path])
    return modules[path], calls[path], np.mean(magnitudes, 0)
