"""Hooks that see or replace the calls of a model's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import mlx.nn as nn

Hook = Callable[..., Any]


@contextmanager
def intercepted(
    hooks: Iterable[tuple[nn.Module, Hook]], method: str = "__call__"
) -> Iterator[None]:
    """Redirect each module's calls to its hook, inside the context.

    A hook is called as `hook(original, *args, **kwargs)`. The module's class becomes a
    subclass of the same name: attributes, parameters and `isinstance` stay the same.
    """
    originals: list[tuple[nn.Module, type[nn.Module]]] = []
    try:
        for module, hook in hooks:
            kind = type(module)
            originals.append((module, kind))
            module.__class__ = _hooked(kind, hook, method)
        yield
    finally:
        for module, kind in reversed(originals):
            module.__class__ = kind


def _hooked(kind: type[nn.Module], hook: Hook, method: str) -> type[nn.Module]:
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return hook(partial(getattr(kind, method), self), *args, **kwargs)

    return type(kind.__name__, (kind,), {method: call})
