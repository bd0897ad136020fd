"""The folds of a layer: the division of an input goes into the input's producer.

The producer is a norm, whose weight is divided, or a linear module with one output for
each input, whose rows are divided: a value projection through attention, an up
projection through the product with the gate. The consumers of a norm are observed: they
receive the same array that the norm returned.

Every fold is tried with powers of two first. It is dropped if the layer's output
changes, so families with other operations in between stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble.layerwise.cpu_math import to_numpy
from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.stream import arrays

# The linear module that consumes an input, and its possible producers, by name.
_PRODUCERS = {
    "down_proj": ("up_proj", "gate_up_proj"),
    "o_proj": ("v_proj", "qkv_proj"),
    "dense": ("v_proj",),
}
_HEADS = ("n_heads", "num_heads", "num_attention_heads")
# Powers of two scale exactly, except a weight that is stored less 1, as in Gemma's
# norms: its rounding remains. A wrong fold changes outputs by their own size.
_CHANGE = 1e-4


@dataclass(frozen=True)
class Fold:
    """An input that can be scaled.

    Attributes:
        consumers: The linear modules with this input, by path within the layer.
        producer: The module that computes the input.
        index: Output of the producer that each input is, `[K]`.
        offset: True if the producer is a norm that multiplies by `1 + weight`.
    """

    consumers: Mapping[str, nn.Module]
    producer: nn.Module
    index: np.ndarray
    offset: bool = False

    def tie(self, magnitude: np.ndarray) -> np.ndarray:
        """Return the mean over inputs that are the same output of the producer."""
        count = np.bincount(self.index)
        total = np.bincount(self.index, magnitude)
        return (total / np.maximum(count, 1))[self.index]

    def apply(self, s: np.ndarray) -> None:
        """Multiply the consumers' columns by s, `[K]`; divide the producer's rows."""
        for module in self.consumers.values():
            module["weight"] = module["weight"] * mx.array(s)
        weight = self.producer["weight"]
        outputs = weight.shape[-1] if weight.ndim == 1 else weight.shape[-2]
        divisor = np.ones(outputs, np.float32)
        divisor[self.index] = s
        d = mx.array(divisor)
        if weight.ndim == 1:
            weight = (1 + weight) / d - 1 if self.offset else weight / d
        else:
            weight = weight / d[:, None]
        self.producer["weight"] = weight
        if "bias" in self.producer:
            self.producer["bias"] = self.producer["bias"] / d


def folds(layer: nn.Module, run: Callable[[], Any]) -> Iterator[Fold]:
    """Yield the exact folds of a decoder layer: into norms, then linear modules.

    Args:
        layer: A layer in float32.
        run: Function that calls it, always on the same input.
    """
    expected = values(run())
    norm_folds, called = _norm_folds(layer, run)
    for fold in [*norm_folds, *_linear_folds(layer, called)]:
        if _is_exact(fold, run, expected):
            yield fold


def values(result: Any) -> list[np.ndarray]:
    """Return the floating arrays of a call's result."""
    floating = [a for a in arrays(result) if mx.issubdtype(a.dtype, mx.floating)]
    return [to_numpy(a) for a in floating]


def _is_exact(
    fold: Fold, run: Callable[[], Any], expected: Sequence[np.ndarray]
) -> bool:
    touched = [*fold.consumers.values(), fold.producer]
    before = [{k: m[k] for k in ("weight", "bias") if k in m} for m in touched]
    fold.apply(2.0 ** (fold.index % 3 - 1).astype(np.float32))
    got = values(run())
    for module, parameters in zip(touched, before, strict=True):
        for name, value in parameters.items():
            module[name] = value
    return all(
        abs(y - x).max(initial=0) <= _CHANGE * abs(x).max(initial=0)
        for y, x in zip(got, expected, strict=True)
    )


def _norm_folds(
    layer: nn.Module, run: Callable[[], Any]
) -> tuple[list[Fold], set[str]]:
    """Return the folds into norms, and the paths of all linear modules called."""
    norms = {p: m for p, m in layer.named_modules() if _is_norm(m)}
    takers = {p: m for p, m in layer.named_modules() if _consumers(p, m)}
    made: dict[int, str] = {}
    taken: dict[str, list[str]] = {}
    called: set[str] = set()
    kept = []  # an id is unique only while its array is alive

    def make(path: str) -> Hook:
        def hook(original: Callable, *args: Any, **kwargs: Any) -> Any:
            y = original(*args, **kwargs)
            kept.append(y)
            made[id(y)] = path
            return y

        return hook

    def take(path: str) -> Hook:
        def hook(original: Callable, *args: Any, **kwargs: Any) -> Any:
            called.add(path)
            if args and id(args[0]) in made:
                taken.setdefault(made[id(args[0])], []).append(path)
            return original(*args, **kwargs)

        return hook

    hooks = [(m, make(p)) for p, m in norms.items()]
    hooks += [(m, take(p)) for p, m in takers.items()]
    with intercepted(hooks):
        run()
    found = []
    for path, paths in taken.items():
        consumers = {k: v for p in paths for k, v in _consumers(p, takers[p]).items()}
        norm = norms[path]
        index = np.arange(norm["weight"].size)
        if all(m["weight"].shape[-1] == len(index) for m in consumers.values()):
            found.append(Fold(consumers, norm, index, _has_offset(norm)))
    return found, called


def _is_norm(module: nn.Module) -> bool:
    name = type(module).__name__
    return "Norm" in name and "weight" in module and module["weight"].ndim == 1


def _has_offset(norm: nn.Module) -> bool:
    """Tell whether a norm multiplies by `1 + weight`, as in Gemma."""
    weight = norm["weight"]
    norm["weight"] = mx.zeros_like(weight)
    rows = mx.eye(len(weight))[:2]
    y = norm(rows)
    norm["weight"] = weight
    return bool((y[0] != y[1]).any())


def _consumers(path: str, module: nn.Module) -> dict[str, nn.Module]:
    """Return the linear modules whose input is this module's first argument."""
    if _is_linear(module):
        return {path: module}
    # mlx-lm's experts expand and sort their input, then multiply.
    parts = {n: module[n] for n in ("gate_proj", "up_proj") if n in module}
    if len(parts) == 2 and all(p["weight"].ndim == 3 for p in parts.values()):
        return {f"{path}.{name}": part for name, part in parts.items()}
    return {}


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (
        hasattr(module, "to_quantized") and not isinstance(module, nn.Embedding)
    )


def _linear_folds(layer: nn.Module, called: set[str]) -> list[Fold]:
    modules = dict(layer.named_modules())
    found = []
    for path, module in modules.items():
        prefix, _, name = path.rpartition(".")
        if name not in _PRODUCERS or path not in called:
            continue
        siblings = modules[prefix]
        for producer in _PRODUCERS[name]:
            if f"{prefix}.{producer}".lstrip(".") not in called:
                continue
            rows = siblings[producer]["weight"].shape[-2]
            index = _producer_rows(name, module["weight"].shape[-1], rows, siblings)
            if index is not None:
                found.append(Fold({path: module}, siblings[producer], index))
    return found


def _producer_rows(
    name: str, inputs: int, rows: int, attention: nn.Module
) -> np.ndarray | None:
    """Return the producer's row of each input; None if it is unknown."""
    if name == "down_proj":  # the second half of a fused gate and up projection
        return np.arange(inputs) + rows - inputs if rows >= inputs else None
    heads = next((getattr(attention, n) for n in _HEADS if hasattr(attention, n)), 0)
    if not heads or inputs % heads:
        return None
    # Values are the last part of fused queries, keys and values. There are as many
    # rows of queries as inputs.
    values = rows if rows <= inputs else (rows - inputs) // 2
    width = inputs // heads
    if values % width or not values or heads % (values // width):
        return None
    repeats = heads // (values // width)
    head, within = np.divmod(np.arange(inputs), width)
    return rows - values + head // repeats * width + within


def block_of(paths: Sequence[str]) -> str:
    """Return the path, within the layer, of the smallest module around some paths."""
    common = paths[0].split(".")[:-1]
    for path in paths[1:]:
        parts = path.split(".")[:-1]
        common = [a for a, b in zip(common, parts, strict=False) if a == b]
    return ".".join(common)
