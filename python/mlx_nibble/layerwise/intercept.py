"""See, or replace, the calls of a model's modules for a while."""

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
    """Inside it, each module's call goes to its hook.

    A hook is called as `hook(original, *args, **kwargs)`. The module changes its
    class for a subclass of the same name, so that attributes, parameters and
    `isinstance` are as before.
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
