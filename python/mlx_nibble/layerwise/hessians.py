"""Hessians of a layer's linear modules, collected while the layer runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import to_numpy
from mlx_nibble.layerwise.intercept import Hook

# An expert that saw fewer tokens than inputs has a Hessian of low rank; so much of
# all experts' mean (a share of the tokens an average expert sees) stands in.
_EXPERT_PRIOR = 0.1


@dataclass
class Inputs:
    """What is known of one input that one or more modules share.

    Attributes:
        paths: The modules, by path within the layer.
        hessian: `X^T X`, `[K, K]`; of experts `[E, K, K]`.
        rows: Tokens seen.
    """

    paths: list[str]
    hessian: np.ndarray
    rows: int = 0


@dataclass
class Collector:
    """Collects the inputs of modules over batches."""

    modules: dict[str, nn.Module]
    _seen: dict[str, tuple[mx.array, mx.array | None]] = field(default_factory=dict)
    _inputs: dict[tuple[str, ...], Inputs] = field(default_factory=dict)

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """For `intercepted`."""
        return [(module, self._hook(path)) for path, module in self.modules.items()]

    def _hook(self, path: str) -> Hook:
        def see(original: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            indices = args[0] if args and isinstance(args[0], mx.array) else None
            self._seen[path] = (x, indices)
            return original(x, *args, **kwargs)

        return see

    def observe(self) -> None:
        """The batch just run is to be counted."""
        for paths in self._shared():
            x, indices = self._seen[paths[0]]
            inputs = self._inputs.get(paths)
            seen = hessian(x, indices, self.modules[paths[0]])
            if inputs is None:
                inputs = Inputs(list(paths), np.zeros_like(seen))
                self._inputs[paths] = inputs
            inputs.hessian += seen
            inputs.rows += x.size // x.shape[-1]
        self._seen = {}

    def _shared(self) -> list[tuple[str, ...]]:
        """Modules that were given one and the same array, together."""
        groups: dict[tuple[int, int], list[str]] = {}
        for path, (x, indices) in self._seen.items():
            groups.setdefault((id(x), id(indices)), []).append(path)
        return [tuple(paths) for paths in groups.values()]

    def result(self) -> list[Inputs]:
        """All inputs seen; experts' Hessians filled up from each other's."""
        for inputs in self._inputs.values():
            if inputs.hessian.ndim == 3:
                inputs.hessian += _EXPERT_PRIOR * inputs.hessian.mean(0)
        return list(self._inputs.values())


def evening(rows: np.ndarray) -> np.ndarray:
    """Factors `[T, 1]` that scale tokens of more than the median power down to it.

    The inputs of some down projections have a few tokens (the first of a text above
    all) of a thousand times the norm of the rest, and so has the hidden state that
    they make. What counts is an error's share of that state, since the next norm
    divides by it; unscaled, such tokens alone would decide the Hessian.
    """
    power = np.einsum("tk,tk->t", rows, rows)
    median = np.median(power)
    return np.sqrt(np.minimum(1, median / np.maximum(power, median)))[:, None]


def hessian(
    x: mx.array, indices: mx.array | None = None, module: nn.Module | None = None
) -> np.ndarray:
    """`X^T X` of one batch, float32; for experts one each.

    Args:
        x: `[..., K]`.
        indices: For experts: which one each row goes to.
        module: For experts: the module, its weight `[E, N, K]`.
    """
    rows = to_numpy(x).reshape(-1, x.shape[-1])
    rows = rows * evening(rows)
    if indices is None or module is None:
        return rows.T @ rows
    chosen = np.array(indices).reshape(-1)
    # Each row goes to one expert (sorted), or to several in turn.
    rows = np.repeat(rows, len(chosen) // len(rows), 0)
    experts = module["weight"].shape[0]
    result = np.zeros((experts, rows.shape[1], rows.shape[1]), np.float32)
    for expert in np.unique(chosen):
        picked = rows[chosen == expert]
        result[expert] = picked.T @ picked
    return result
