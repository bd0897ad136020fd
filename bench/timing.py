"""Times whole calls in turns, by the schedule of ``nibble bench``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mlx_nibble.bench.statistics import Estimate, median
from mlx_nibble.machine.turns import take_pass

Samples = dict[str, list[float]]
"""Seconds of each call by its name, in the order of the rounds."""


@dataclass
class Call:
    """A call that takes turns. It may measure itself, and return the seconds."""

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
    """Time calls in turns, after an untimed run of each.

    Args:
        calls: Calls by name.
        seconds: Time for all of them; the slowest decides how many rounds fit.
        least: Least number of rounds, however long they take.
        most: Largest number of rounds.
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
    """Return the samples of a capsule's result."""
    return {
        name: [s for taken in candidate["passes"] for s in taken]
        for name, candidate in result["candidates"].items()
    }


def faster(slow: Sequence[float], fast: Sequence[float]) -> Estimate:
    """Return the speedup of `fast` over `slow`, from the same rounds."""
    return median([a / b for a, b in zip(slow, fast, strict=True)])


def compared(
    slow: Callable[[], object], fast: Callable[[], object], seconds: float
) -> dict[str, float]:
    """Time two calls in turns; return the speedup and the ms of the fast one."""
    taken = interleave({"slow": slow, "fast": fast}, seconds)
    ratio = faster(taken["slow"], taken["fast"])
    return {
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "ms": 1e3 * median(taken["fast"]).value,
    }
