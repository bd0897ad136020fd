"""Modules that all models of a process share.

A module that is the default of an argument exists once, such as ``activation=SwiGLU()``
of mlx-lm's ``SwitchGLU``. A change of it would change all models that contain it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import mlx.nn as nn


@dataclass(frozen=True)
class Replaced:
    """A child module that other models share, and the copy that replaces it."""

    parent: nn.Module = field(repr=False)
    name: str
    shared: nn.Module = field(repr=False)
    own: nn.Module = field(repr=False)

    def undo(self) -> None:
        """Put the shared module back, unless another module replaced the copy."""
        if self.parent.get(self.name) is self.own:
            self.parent[self.name] = self.shared


def replace(
    model: nn.Module, of_interest: Callable[[type], bool], replaced: list[Replaced]
) -> None:
    """Give a model its own copies of shared modules.

    Args:
        model: Any module.
        of_interest: Function of the class of a shared module; a false result leaves
            the module shared.
        replaced: List that receives each replacement, so that they can be undone.
    """
    copies: dict[int, nn.Module] = {}
    for parent in model.modules():
        for name, child in _shared(parent):
            if of_interest(type(child)):
                own = copies.setdefault(id(child), copy.copy(child))
                replaced.append(Replaced(parent, name, child, own))
                parent[name] = own


def _shared(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the names and the children that are defaults of a module's arguments."""
    make = type(parent).__init__
    defaults = (*(getattr(make, "__defaults__", None) or ()),)
    defaults += (*(getattr(make, "__kwdefaults__", None) or {}).values(),)
    modules = {id(d) for d in defaults if isinstance(d, nn.Module)}
    if modules:
        yield from [(n, child) for n, child in parent.items() if id(child) in modules]
