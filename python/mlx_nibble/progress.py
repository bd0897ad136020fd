"""The one form in which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tell = Callable[[str], None]
"""A function that is told a fact of the work, in one line."""


class Progress(Protocol):
    """A function that is told how far the work is."""

    def __call__(self, what: str, done: float, total: float, /) -> None:
        """Report progress.

        Args:
            what: Description of the current step.
            done: Finished amount: steps, bytes or seconds.
            total: Amount of all the work, in the same unit; `inf` if unknown.
        """
        ...


def silent(what: str, done: float, total: float, /) -> None:
    """Report nothing."""


def untold(fact: str, /) -> None:
    """Tell nobody."""
