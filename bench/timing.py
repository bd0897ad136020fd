"""Turns of calls that are timed whole, by the schedule of ``nibble bench``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_nibble.bench.schedule import take_pass
from mlx_nibble.bench.statistics import Estimate, median

Samples = dict[str, list[float]]
"""Seconds of each call, by its name, in the order of the rounds."""


@dataclass
class Call:
    """Returns when its work is done; or, if it measures itself, the seconds."""

    run: Callable[[], object]
    passes: list[list[float]] = field(default_factory=list)

    def sample(self) -> float:
        before = time.perf_counter()
        own = self.run()
        elapsed = time.perf_counter() - before
        return own if isinstance(own, float) else elapsed


def interleave(
    calls: Mapping[str, Callable[[], object]],
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
) -> Samples:
    """Time each in its turn, once it has run untimed.

    Args:
        calls: By name.
        seconds: To spend on all of them; the slowest decides how many rounds fit.
        least: Rounds to make however long they take.
        most: Rounds to stop at.
    """
    taking = {name: Call(run) for name, run in calls.items()}
    for call in taking.values():
        call.run()
    start = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - start < seconds):
        take_pass(taking, 0)
        rounds += 1
    return {n: [s for taken in c.passes for s in taken] for n, c in taking.items()}


def samples(result: dict) -> Samples:
    """Of a result in a capsule."""
    return {
        name: [s for taken in candidate["passes"] for s in taken]
        for name, candidate in result["candidates"].items()
    }


def faster(slow: Sequence[float], fast: Sequence[float]) -> Estimate:
    """How many times faster `fast` was than `slow`, of the same rounds."""
    return median([a / b for a, b in zip(slow, fast, strict=True)])
