"""In what order things are timed: in turns, so that a slow moment is everyone's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlx_nibble.bench.machine import busy_elsewhere

Chain = Callable[[int], None]
"""Does its work so many times, each after the one before, and waits for the last."""

# A sample shorter than this is mostly the waiting at its end (some 20 us).
_SAMPLE_SECONDS = 5e-3
_LONGEST_CHAIN = 64
DROPPED = 2
"""Passes of a case that are dropped before one is taken as it is."""

# Of one core's time, taken by others: less hardly shows.
_OTHERS_SHARE = 0.1
# Two ticks of the clock that the system counts busy time with.
_CLOCK_ERROR = 0.02


class Entrant(Protocol):
    """What takes turns.

    Attributes:
        passes: Seconds, in samples, in passes.
    """

    passes: list[list[float]]

    def sample(self) -> float:
        """Seconds of one time, now."""
        ...


@dataclass
class Candidate:
    """One of the things that take turns: a chain of what is too short to time alone.

    Attributes:
        chain: Runs it.
        length: Times in a sample; set by :func:`warm_up`.
        passes: Seconds of one time, in samples, in passes.
    """

    chain: Chain
    length: int = 1
    passes: list[list[float]] = field(default_factory=list)

    def sample(self) -> float:
        """Seconds of one time, now.

        What ran before has put threads to sleep and filled the caches; so that it does
        not matter what that was, a short one runs once before it is timed.
        """
        if self.length > 1:
            self.chain(1)
        before = time.perf_counter()
        self.chain(self.length)
        return (time.perf_counter() - before) / self.length


def warm_up(candidate: Candidate, limit: float) -> float:
    """Run it for the first time, and choose its length.

    Args:
        candidate: What will be timed.
        limit: Seconds above which it will not be.

    Returns:
        Seconds of one time; the first alone, if it is above the limit.
    """
    candidate.length = 1
    seconds = candidate.sample()
    if seconds > limit:
        return seconds
    seconds = candidate.sample()
    if seconds < _SAMPLE_SECONDS:
        candidate.length = min(_LONGEST_CHAIN, math.ceil(_SAMPLE_SECONDS / seconds))
        seconds = candidate.sample()
    return seconds


def take_pass(candidates: Mapping[str, Entrant], seconds: float) -> None:
    """Add one pass to each: rounds of one sample each for a time, and at least one."""
    each = list(candidates.values())
    rounds = sum(len(taken) for taken in each[0].passes) if each else 0
    for candidate in each:
        candidate.passes.append([])
    orders = balanced_orders(len(each))
    start = time.perf_counter()
    while True:
        for index in orders[rounds % len(orders)]:
            each[index].passes[-1].append(each[index].sample())
        rounds += 1
        if time.perf_counter() - start >= seconds:
            return


class Undisturbed:
    """Whether other programs have been at work since it was made."""

    def __init__(self) -> None:
        """From now on."""
        self._busy, self._start = busy_elsewhere(), time.perf_counter()

    def so_far(self) -> bool:
        """True, too, where the system does not tell."""
        busy, elapsed = busy_elsewhere(), time.perf_counter() - self._start
        if self._busy is None or busy is None:
            return True
        return busy - self._busy <= max(_CLOCK_ERROR, _OTHERS_SHARE * elapsed)


def take_quiet_pass(candidates: Mapping[str, Entrant], seconds: float) -> int:
    """Add one pass to each, and take it again if other programs were at work.

    Returns:
        How many passes were dropped, at most :data:`DROPPED`.
    """
    for dropped in range(DROPPED):
        watch = Undisturbed()
        take_pass(candidates, seconds)
        if watch.so_far():
            return dropped
        for candidate in candidates.values():
            candidate.passes.pop()
    take_pass(candidates, seconds)
    return DROPPED


def balanced_orders(count: int) -> list[list[int]]:
    """Orders in which each follows each other one equally often: ABBA, and for more.

    What ran before leaves its mark on caches, threads and clock, so nobody may always
    come after the same one. Williams (1949): 0, 1, n - 1, 2, n - 2 ... and its shifts;
    of an odd number also backwards.
    """
    first = [i // 2 + 1 if i % 2 else -(i // 2) for i in range(count)]
    orders = [[(i + shift) % count for i in first] for shift in range(count)]
    return orders + [order[::-1] for order in orders] if count % 2 else orders
