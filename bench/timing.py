"""How things are timed: interleaved, cold, with their spread.

Machines are shared and their speed drifts. So candidates take turns in ABBA order
within one run, and what is reported is the median of the ratios of neighbours, not
a ratio of times taken minutes apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Samples:
    """Seconds of each timed call, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
) -> dict[str, Samples]:
    """Time each candidate in turn, forwards and then backwards (ABBA).

    Args:
        candidates: Calls that return when their work is done; one that measures
            itself, in a process of its own, returns the seconds, a float.
        seconds: Time to spend on all of them together; the slowest decides how
            many rounds fit.
        least: Rounds to make however long they take.
        most: Rounds to stop at.

    Returns:
        As many samples for each candidate.
    """
    for call in candidates.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - start < seconds):
        order = list(candidates)
        for name in order if rounds % 2 == 0 else reversed(order):
            call = candidates[name]
            before = time.perf_counter()
            own = call()
            elapsed = time.perf_counter() - before
            taken[name].append(own if isinstance(own, float) else elapsed)
        rounds += 1
    return {name: Samples(tuple(s)) for name, s in taken.items()}


def ratios(slow: Samples, fast: Samples) -> Samples:
    """How many times faster `fast` was, round by round."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return Samples(tuple(a / b for a, b in pairs))


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
