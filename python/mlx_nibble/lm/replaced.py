"""A name of a module or a class, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def replaced(owner: ModuleType | type, name: str, value: Any) -> Iterator[None]:
    """Replace a name of a module or a class inside this context, if it is there."""
    if not hasattr(owner, name):
        yield
        return
    original = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
