"""Hessians of a layer's linear modules, accumulated while the layer runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.rows import Rows, is_product, rows

_Seen = tuple[tuple, dict[str, Any], Any]
"""Arguments and result of a call."""

# An expert with fewer tokens than inputs has a Hessian of low rank. Each Hessian gets
# this share of the mean over all experts: a share of an average expert's tokens.
_EXPERT_PRIOR = 0.1


@dataclass
class Inputs:
    """Statistics of one input that one or more modules share.

    Attributes:
        paths: Paths of the modules.
        hessian: `X^T X`, `[K, K]`; `[E, K, K]` for a weight `[E, N, K]`.
        rows: Number of tokens.
    """

    paths: list[str]
    hessian: np.ndarray
    rows: int = 0


@dataclass
class Collector:
    """Statistics of the inputs of modules, collected over batches.

    A module whose calls are not products of rows with its weight has none.
    """

    modules: Mapping[str, nn.Module]
    _seen: dict[str, list[_Seen]] = field(default_factory=dict)
    _inputs: dict[tuple[str, ...], Inputs] = field(default_factory=dict)
    _other: set[str] = field(default_factory=set)
    _known: set[str] = field(default_factory=set)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls of the modules inside the context."""
        dense = [(m, p) for p, m in self.modules.items() if not _is_embedding(m)]
        tied = [(m, p) for p, m in self.modules.items() if _is_embedding(m)]
        with (
            intercepted([(m, self._hook(p)) for m, p in dense]),
            intercepted([(m, self._hook(p)) for m, p in tied], "as_linear"),
        ):
            yield

    def _hook(self, path: str) -> Hook:
        def see(original: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if path not in self._other:
                kept = None if path in self._known else result
                self._seen.setdefault(path, []).append((args, kwargs, kept))
            return result

        return see

    def observe(self) -> None:
        """Add the batch that just ran."""
        for paths in self._shared():
            calls = [self._rows(paths[0], call) for call in self._seen[paths[0]]]
            if any(found is None for found in calls):
                self._other.update(paths)
                continue
            for path in paths:
                self._check(path, calls)
            mine = tuple(p for p in paths if p not in self._other)
            if mine:
                self._add(mine, [found for found in calls if found])
        self._seen = {}

    def _rows(self, path: str, call: _Seen) -> Rows | None:
        args, kwargs, _ = call
        return rows(self.modules[path], *args, **kwargs)

    def _check(self, path: str, calls: Sequence[Rows | None]) -> None:
        """Compare a module's first result with the product of its rows."""
        if path in self._known:
            return
        self._known.add(path)
        for found, (_, _, result) in zip(calls, self._seen[path], strict=True):
            if found and not np.isfinite(found.x).all():
                raise not_finite(f"inputs of {path}")
            if not found or not is_product(self.modules[path], found, result):
                self._other.add(path)

    def _add(self, paths: tuple[str, ...], calls: list[Rows]) -> None:
        for found in calls:
            seen = hessian(found, self.modules[paths[0]])
            inputs = self._inputs.get(paths)
            if inputs is None:
                inputs = Inputs(list(paths), np.zeros_like(seen))
                self._inputs[paths] = inputs
            inputs.hessian += seen
            inputs.rows += found.tokens

    def _shared(self) -> list[tuple[str, ...]]:
        """Group the modules whose inputs were the same arrays."""
        groups: dict[tuple, list[str]] = {}
        for path, calls in self._seen.items():
            module = self.modules[path]
            key = tuple(
                tuple(map(id, (*args, *kwargs.values()))) for args, kwargs, _ in calls
            )
            lead = tuple(module["weight"].shape[:-2])
            groups.setdefault((key, lead), []).append(path)
        return [tuple(paths) for paths in groups.values()]

    def result(self) -> dict[str, Inputs]:
        """Return the inputs of each path; experts' include a share of their mean.

        Raises:
            ValueError: If the inputs of a module were not finite.
        """
        for inputs in self._inputs.values():
            if not np.isfinite(inputs.hessian).all():
                raise not_finite(f"inputs of {inputs.paths[0]}")
            if inputs.hessian.ndim == 3:
                inputs.hessian += _EXPERT_PRIOR * inputs.hessian.mean(0)
        return {path: i for i in self._inputs.values() for path in i.paths}


def token_factors(rows: np.ndarray) -> np.ndarray:
    """Return factors `[T, 1]` that reduce tokens of large power to the median power.

    The inputs of some down projections have a few tokens, above all the first of a
    text, with a thousand times the norm of the rest. Their hidden state is as large,
    and the next norm divides by it, so only the relative error matters. Without these
    factors such tokens alone would determine the Hessian.
    """
    power = np.einsum("tk,tk->t", rows, rows)
    if not power.any():
        return np.ones_like(power)[:, None]
    median = np.median(power[power > 0])
    return np.sqrt(median / np.maximum(power, median))[:, None]


def hessian(found: Rows, module: nn.Module) -> np.ndarray:
    """Return `X^T X` of a call, float32; one for each matrix of `[E, N, K]`."""
    x = found.x * token_factors(found.x)
    if found.matrix is None:
        return x.T @ x
    result = np.zeros((module["weight"].shape[0], *2 * x.shape[1:]), np.float32)
    for index in np.unique(found.matrix):
        picked = x[found.matrix == index]
        result[index] = picked.T @ picked
    return result


def not_finite(values: str) -> ValueError:
    """Return the error about values that a model computes on calibration text."""
    return ValueError(
        f"[calibrate] the {values} must be finite but are not: the model's activations "
        "overflow on this text, or its weights have NaN; use another --calibration "
        "text or --method rtn."
    )


def _is_embedding(module: nn.Module) -> bool:
    return hasattr(module, "as_linear")
