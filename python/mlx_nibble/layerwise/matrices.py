"""The matrices of a model that can be quantized."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

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
        own: Bits and group size that the model itself asks for, as a router may.
    """

    path: str
    shape: tuple[int, ...]
    module: nn.Module
    own: Mapping[str, int] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Number of inputs K."""
        return self.shape[-1]

    @property
    def size(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


def matrices(model: nn.Module) -> list[Matrix]:
    """Return the quantizable modules of a full-precision model, in its order.

    mlx-lm's models may have a `quant_predicate`. It may exclude modules.
    """
    wants = getattr(model, "quant_predicate", None) or (lambda path, module: True)
    found: dict[int, Matrix] = {}  # a module may have several paths
    for path, module in model.named_modules():
        if not _is_quantizable(module):
            continue
        answer = wants(path, module)
        if answer and id(module) not in found:
            own = answer if isinstance(answer, dict) else {}
            own = {k: v for k, v in own.items() if k in ("bits", "group_size")}
            shape = tuple(module["weight"].shape)
            found[id(module)] = Matrix(path, shape, module, own)
    return sorted(found.values(), key=lambda m: natural(m.path))


def _is_quantizable(module: nn.Module) -> bool:
    """Tell whether mlx-lm loads the module's quantized form: it passes a mode."""
    convert = getattr(module, "to_quantized", None)
    if convert is None or "weight" not in module:
        return False
    return "mode" in inspect.signature(convert).parameters


def parameters(module: nn.Module) -> dict[str, mx.array]:
    """Return all parameters of a module, by path within it."""
    flat = tree_flatten(module.parameters())
    return {path: value for path, value in flat if isinstance(value, mx.array)}


def natural(path: str) -> list[tuple[int, int | str]]:
    """Return a sort key of paths that puts layer 10 after layer 9."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in path.split(".")]


def drop(part: nn.Module) -> None:
    """Free a part's parameters."""
    empty = mx.zeros((0,))
    for module in part.modules():
        for name, value in module.items():
            if isinstance(value, mx.array):
                module[name] = empty
