"""Hessians of a layer's linear modules, accumulated while the layer runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import to_numpy
from mlx_nibble.layerwise.intercept import Hook

# An expert with fewer tokens than inputs has a Hessian of low rank. Each Hessian gets
# this share of the mean over all experts: a share of an average expert's tokens.
_EXPERT_PRIOR = 0.1


@dataclass
class Inputs:
    """Statistics of one input that one or more modules share.

    Attributes:
        paths: Paths of the modules within the layer.
        hessian: `X^T X`, `[K, K]`; `[E, K, K]` for experts.
        rows: Number of tokens.
    """

    paths: list[str]
    hessian: np.ndarray
    rows: int = 0


@dataclass
class Collector:
    """Statistics of the inputs of modules, collected over batches."""

    modules: dict[str, nn.Module]
    _seen: dict[str, tuple[mx.array, mx.array | None]] = field(default_factory=dict)
    _inputs: dict[tuple[str, ...], Inputs] = field(default_factory=dict)

    def hooks(self) -> list[tuple[nn.Module, Hook]]:
        """Return the hooks for `intercepted`."""
        return [(module, self._hook(path)) for path, module in self.modules.items()]

    def _hook(self, path: str) -> Hook:
        def see(original: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
            indices = args[0] if args and isinstance(args[0], mx.array) else None
            self._seen[path] = (x, indices)
            return original(x, *args, **kwargs)

        return see

    def observe(self) -> None:
        """Add the batch that just ran."""
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
        """Group the modules whose input was the same array."""
        groups: dict[tuple[int, int], list[str]] = {}
        for path, (x, indices) in self._seen.items():
            groups.setdefault((id(x), id(indices)), []).append(path)
        return [tuple(paths) for paths in groups.values()]

    def result(self) -> list[Inputs]:
        """Return all statistics; experts' Hessians include a share of their mean."""
        for inputs in self._inputs.values():
            if inputs.hessian.ndim == 3:
                inputs.hessian += _EXPERT_PRIOR * inputs.hessian.mean(0)
        return list(self._inputs.values())


def token_factors(rows: np.ndarray) -> np.ndarray:
    """Return factors `[T, 1]` that reduce tokens of large power to the median power.

    The inputs of some down projections have a few tokens, above all the first of a
    text, with a thousand times the norm of the rest. Their hidden state is as large,
    and the next norm divides by it, so only the relative error matters. Without these
    factors such tokens alone would determine the Hessian.
    """
    power = np.einsum("tk,tk->t", rows, rows)
    median = np.median(power)
    share = np.ones_like(power)
    np.divide(median, power, out=share, where=power > median)
    return np.sqrt(share)[:, None]


def hessian(
    x: mx.array, indices: mx.array | None = None, module: nn.Module | None = None
) -> np.ndarray:
    """Return `X^T X` of one batch, float32; one matrix for each expert.

    Args:
        x: Inputs, `[..., K]`.
        indices: Expert of each row; None without experts.
        module: Module of the experts, its weight `[E, N, K]`; None without experts.
    """
    rows = to_numpy(x).reshape(-1, x.shape[-1])
    rows = rows * token_factors(rows)
    if indices is None or module is None:
        return rows.T @ rows
    chosen = np.array(indices).reshape(-1)
    # Each row goes to one expert (rows are sorted), or to several one after another.
    rows = np.repeat(rows, len(chosen) // len(rows), 0)
    experts = module["weight"].shape[0]
    result = np.zeros((experts, rows.shape[1], rows.shape[1]), np.float32)
    for expert in np.unique(chosen):
        picked = rows[chosen == expert]
        result[expert] = picked.T @ picked
    return result
