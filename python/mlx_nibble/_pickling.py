"""Pickle layers whose class is made at run time, as layers of the class below it.

As a saved model does, a pickle holds MLX's layers: :func:`mlx_nibble.accelerate` what
comes out of it. Copies, which :mod:`copy` makes by the same protocol, keep the class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Kind:
    """A class made at run time; a pickle names the one below it instead."""

    def __init__(self, kind: type, named: type) -> None:
        self.kind, self.named = kind, named

    def __deepcopy__(self, memo: dict) -> _Kind:
        return self

    def __reduce__(self) -> tuple[type[_Kind], tuple[type, type]]:
        return _Kind, (self.named, self.named)


def pickled_as(named: type) -> Callable[[Any, Any], tuple]:
    """The ``__reduce_ex__`` of classes that differ from ``named`` in code alone."""

    def reduce(self: Any, protocol: Any) -> tuple:
        # Before the second protocol, dictionaries had another form.
        _, _, *content = object.__reduce_ex__(self, max(2, protocol))
        return _new, (_Kind(type(self), named),), *content

    return reduce


def _new(kind: _Kind) -> Any:
    make: Any = kind.kind.__new__
    return make(kind.kind)
