"""Which modules of a model can be quantized, and what they are."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


@dataclass(frozen=True)
class Matrix:
    """A module with a weight that can be stored in few bits.

    Attributes:
        path: Its path in the model.
        shape: Of its weight, `[..., N, K]`.
        module: The module.
    """

    path: str
    shape: tuple[int, ...]
    module: nn.Module

    @property
    def inputs(self) -> int:
        """K."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Number of weights."""
        count = 1
        for n in self.shape:
            count *= n
        return count


def matrices(model: nn.Module) -> list[Matrix]:
    """The quantizable modules of a model that is not quantized, in its order."""
    found = []
    for path, module in model.named_modules():
        if hasattr(module, "to_quantized") and "weight" in module:
            found.append(Matrix(path, tuple(module["weight"].shape), module))
    return sorted(found, key=lambda m: natural(m.path))


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """All parameters of a module, by path within it."""
    flat = tree_flatten(module.parameters())
    return {path: value for path, value in flat if isinstance(value, mx.array)}


def natural(path: str) -> list[tuple[int, int | str]]:
    """What to sort paths by: layer 10 comes after layer 9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in path.split(".")]
