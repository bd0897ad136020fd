"""Formats of least total loss within a number of bytes."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

from mlx_nibble.formats import Format


@dataclass(frozen=True)
class FormatCost:
    """One way to store a matrix.

    Attributes:
        form: The format.
        nbytes: Bytes of the stored matrix.
        loss: Loss, in any unit that adds up over matrices.
    """

    form: Format
    nbytes: int
    loss: float


def solve(choices: Mapping[str, list[FormatCost]], budget: int) -> dict[str, Format]:
    """Choose the formats of least total loss within a budget of bytes.

    The algorithm is greedy on the lower convex hull of each matrix's choices: each
    step saves the most loss for a byte. The result is optimal for the bytes it uses.
    Its loss exceeds that of the best plan by at most one step of one matrix.

    Args:
        choices: Choices of each matrix, at least one.
        budget: Bytes of all matrices together.

    Raises:
        ValueError: If even the smallest choices exceed the budget.
    """
    hulls = {path: _hull(options) for path, options in choices.items()}
    used = sum(hull[0].nbytes for hull in hulls.values())
    if used > budget:
        raise ValueError(
            f"[budget] the smallest formats take {used} bytes but the budget is "
            f"{budget}."
        )
    chosen = dict.fromkeys(hulls, 0)
    steps: list[tuple[float, str]] = []

    def offer(path: str) -> None:
        hull, at = hulls[path], chosen[path]
        if at + 1 < len(hull):
            heapq.heappush(steps, (_slope(hull[at], hull[at + 1]), path))

    for path in hulls:
        offer(path)
    while steps:
        _, path = heapq.heappop(steps)
        hull, at = hulls[path], chosen[path]
        extra = hull[at + 1].nbytes - hull[at].nbytes
        if used + extra > budget:
            continue  # a cheaper step of another matrix may still fit
        used += extra
        chosen[path] += 1
        offer(path)
    return {path: hulls[path][at].form for path, at in chosen.items()}


def _slope(a: FormatCost, b: FormatCost) -> float:
    """Return the loss for each byte: negative, for b is larger and loses less."""
    return (b.loss - a.loss) / (b.nbytes - a.nbytes)


def _hull(options: list[FormatCost]) -> list[FormatCost]:
    """Return the choices that are best at some price of a byte, smallest first."""
    hull: list[FormatCost] = []
    for option in sorted(options, key=lambda c: (c.nbytes, c.loss)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull
