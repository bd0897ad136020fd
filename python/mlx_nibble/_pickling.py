"""Pickle layers of a class that is made at run time as layers of its base class.

A pickle contains MLX's layers, as a saved model does. Call
:func:`mlx_nibble.accelerate` on an unpickled model. :mod:`copy` uses the same protocol,
but its copies keep the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Kind:
    """A class made at run time; a pickle names its base class instead."""

    def __init__(self, kind: type, named: type) -> None:
        self.kind, self.named = kind, named

    def __deepcopy__(self, memo: dict) -> _Kind:
        return self

    def __reduce__(self) -> tuple[type[_Kind], tuple[type, type]]:
        return _Kind, (self.named, self.named)


def pickled_as(named: type) -> Callable[[Any, Any], tuple]:
    """Return ``__reduce_ex__`` for classes that differ from ``named`` only in code."""

    def reduce(self: Any, protocol: Any) -> tuple:
        # Protocols 0 and 1 reduce dictionaries to another form.
        _, _, *content = object.__reduce_ex__(self, max(2, protocol))
        return _new, (_Kind(type(self), named),), *content

    return reduce


def _new(kind: _Kind) -> Any:
    make: Any = kind.kind.__new__
    return make(kind.kind)
