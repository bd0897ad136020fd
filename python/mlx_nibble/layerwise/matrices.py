"""The matrices of a model that can be quantized."""

from __future__ import annotations

import math
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


@dataclass(frozen=True)
class Matrix:
    """A module with a weight that can be quantized.

    Attributes:
        path: Path in the model.
        shape: Shape of the weight, `[..., N, K]`.
        module: The module.
    """

    path: str
    shape: tuple[int, ...]
    module: nn.Module

    @property
    def inputs(self) -> int:
        """Number of inputs K."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def matrices(model: nn.Module) -> list[Matrix]:
    """Return the quantizable modules of a full-precision model, in its order."""
    found = []
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized") and "weight" in module:
            found.append(Matrix(path, tuple(module["weight"].shape), module))
    return sorted(found, key=lambda m: natural(m.path))


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """Return all parameters of a module, by path within it."""
    flat = tree_flatten(module.parameters())
    return {path: value for path, value in flat if isinstance(value, mx.array)}


def natural(path: str) -> list[tuple[int, int | str]]:
    """Return a sort key of paths that puts layer 10 after layer 9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in path.split(".")]
