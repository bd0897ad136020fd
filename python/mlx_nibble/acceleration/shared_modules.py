"""Modules that every model of a process shares.

A module that is the default of an argument, as ``activation=SwiGLU()`` of mlx-lm's
``SwitchGLU``, exists once. What is done to it is done to all models that hold it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.nn as nn


@dataclass(frozen=True)
class Replaced:
    """A child that a module shared with other models, and its own copy of it."""

    parent: nn.Module = field(repr=False)
    name: str
    shared: nn.Module = field(repr=False)
    own: nn.Module = field(repr=False)

    def undo(self) -> None:
        """Put the shared one back, unless something else has taken its place."""
        if self.parent.get(self.name) is self.own:
            self.parent[self.name] = self.shared


def replace(model: nn.Module, of_interest: Callable[[type], bool]) -> list[Replaced]:
    """Give a model its own copy of what it shares with others.

    Args:
        model: Any module.
        of_interest: Called with the class of a shared module; a false answer leaves
            it shared.
    """
    copies: dict[int, nn.Module] = {}
    replaced: list[Replaced] = []
    for parent in model.modules():
        for name, child in _shared(parent):
            if of_interest(type(child)):
                own = copies.setdefault(id(child), copy.copy(child))
                replaced.append(Replaced(parent, name, child, own))
                parent[name] = own
    return replaced


def _shared(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The children of a module that are defaults of its arguments, and their names."""
    make = type(parent).__init__
    defaults = (*(getattr(make, "__defaults__", None) or ()),)
    defaults += (*(getattr(make, "__kwdefaults__", None) or {}).values(),)
    modules = {id(d) for d in defaults if isinstance(d, nn.Module)}
    if modules:
        yield from [(n, child) for n, child in parent.items() if id(child) in modules]
