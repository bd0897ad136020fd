"""The parts of a model that run one after another, found by watching a forward pass.

Nothing is assumed of a model but that `model(tokens)` runs it. Its lists of modules are
its layers. A part is the largest module inside a list that is called itself and has a
matrix. Where a model calls the modules of its layers one by one, each of these is one.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble.layerwise.intercept import Hook, intercepted
from mlx_nibble.layerwise.matrices import matrices

# Tokens of the watched pass. It builds MLX's lazy graph and evaluates nothing.
_TOKENS = 8


@dataclass(frozen=True)
class Trace:
    """A forward pass as a sequence of calls of parts.

    Attributes:
        parts: Parts by path, in the order of their first call.
        calls: Path of the part of each call.
        first: For each called module, the number of calls of parts that end before its
            own first call.
    """

    parts: dict[str, nn.Module]
    calls: list[str]
    first: dict[str, int]


def trace(model: nn.Module, tokens: mx.array) -> Trace:
    """Watch the model's forward pass on a few tokens.

    Raises:
        ValueError: If the pass fails, or calls no module inside a list.
    """
    modules = {path: m for path, m in _unique(model) if path}
    events = _events(model, modules, tokens[:1, :_TOKENS])
    called = {path for path, entered in events if entered}
    parts = {p for p in called if _largest(p, called) and matrices(modules[p])}
    calls: list[str] = []
    first: dict[str, int] = {}
    inside: list[str] = []  # the part that runs, and parts that it calls itself
    for path, entered in events:
        if path in parts and not entered:
            inside.pop()
        elif path in parts:
            if not inside:
                calls.append(path)
            inside.append(path)
        if entered:
            first.setdefault(path, len(calls) - bool(inside))
    if not calls:
        raise ValueError(
            "[calibrate] the model must have decoder layers in a list but "
            f"{type(model).__name__} calls none: use --method rtn."
        )
    return Trace({path: modules[path] for path in dict.fromkeys(calls)}, calls, first)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the elements of the model's outermost lists, by path."""
    everything = {path for path, _ in model.named_modules() if path}
    return {p: m for p, m in _unique(model) if p and _largest(p, everything)}


def part_of(path: str, parts: Container[str]) -> str | None:
    """Return the path of the part that contains a module; None outside of all."""
    names = path.split(".")
    prefixes = (".".join(names[: i + 1]) for i in range(len(names)))
    return next((p for p in prefixes if p in parts), None)


def _largest(path: str, among: set[str]) -> bool:
    """Tell whether a module is in a list, and no larger one around it is."""
    names = path.split(".")
    prefixes = [names[: i + 1] for i in range(len(names))]
    listed = [".".join(p) for p in prefixes if any(n.isdigit() for n in p)]
    return next((p for p in listed if p in among), None) == path


def _unique(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield every module once, for a module may have several paths."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        if id(module) not in seen:
            seen.add(id(module))
            yield path, module


def _events(
    model: nn.Module, modules: dict[str, nn.Module], tokens: mx.array
) -> list[tuple[str, bool]]:
    """Return the calls of modules in order: path, and True at its start."""
    events: list[tuple[str, bool]] = []

    def hook(path: str) -> Hook:
        def see(original: Any, *args: Any, **kwargs: Any) -> Any:
            events.append((path, True))
            result = original(*args, **kwargs)
            events.append((path, False))
            return result

        return see

    hooked = [(m, hook(path)) for path, m in modules.items() if callable(m)]
    try:
        with intercepted(hooked):
            model(tokens)
    except Exception as error:  # whatever a model's own code raises
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"[calibrate] the model must run on text but {type(model).__name__} failed "
            f"({type(error).__name__}: {reason}): use --method rtn."
        ) from error
    return events
