"""The order of timing: candidates take turns, so that a slow moment affects all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from mlx_nibble.bench.machine import busy_elsewhere

Chain = Callable[[int], None]
"""Repeats work `n` times, one after the other, and waits for the last."""

# A shorter sample is mostly the wait at its end (some 20 us).
_SAMPLE_SECONDS = 5e-3
_LONGEST_CHAIN = 64
DROPPED = 2
"""Disturbed passes of a case that are dropped before one is kept as it is."""

# Share of one core's time taken by other programs; less hardly shows.
_OTHERS_SHARE = 0.1
# Two ticks of the clock by which the system counts busy time.
_CLOCK_ERROR = 0.02


class Candidate(Protocol):
    """Work that takes turns with other work.

    Attributes:
        passes: Seconds of each sample, in a list for each pass.
    """

    passes: list[list[float]]

    def sample(self) -> float:
        """Do the work now and return its seconds."""
        ...


@dataclass
class ChainCandidate:
    """A candidate that is too short to time alone: a sample repeats it.

    Attributes:
        chain: Runs the work.
        length: Repetitions in a sample; :func:`warm_up` sets it.
        passes: Seconds of one repetition for each sample, in a list for each pass.
    """

    chain: Chain
    length: int = 1
    passes: list[list[float]] = field(default_factory=list)

    def sample(self) -> float:
        """Return the seconds of one repetition, measured now.

        The candidate before has put threads to sleep and filled the caches. To hide
        which candidate that was, a short chain runs once untimed.
        """
        if self.length > 1:
            self.chain(1)
        before = time.perf_counter()
        self.chain(self.length)
        return (time.perf_counter() - before) / self.length


def warm_up(candidate: ChainCandidate, limit: float) -> float:
    """Run a candidate for the first time, and choose its length.

    Args:
        candidate: Candidate to prepare.
        limit: Seconds above which the candidate will not be timed.

    Returns:
        Seconds of one repetition. Above the limit, those of the first run.
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


def take_pass(candidates: Mapping[str, Candidate], seconds: float) -> None:
    """Add one pass to each candidate: rounds of one sample each, at least one round."""
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
    """Detects other programs' work since the object was made."""

    def __init__(self) -> None:
        """Start to watch."""
        self._busy, self._start = busy_elsewhere(), time.perf_counter()

    def so_far(self) -> bool:
        """Return whether others were idle; True if the system does not tell."""
        busy, elapsed = busy_elsewhere(), time.perf_counter() - self._start
        if self._busy is None or busy is None:
            return True
        return busy - self._busy <= max(_CLOCK_ERROR, _OTHERS_SHARE * elapsed)


def take_quiet_pass(candidates: Mapping[str, Candidate], seconds: float) -> int:
    """Add one pass to each candidate; repeat it if other programs were at work.

    Returns:
        Number of dropped passes, at most :data:`DROPPED`.
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
    """Return orders in which each follows each other equally often: ABBA, and so on.

    The work before leaves its mark on caches, threads and clock, so no candidate may
    always follow the same one. Williams (1949): 0, 1, n - 1, 2, n - 2 ... and its
    shifts; for an odd number also backwards.
    """
    first = [i // 2 + 1 if i % 2 else -(i // 2) for i in range(count)]
    orders = [[(i + shift) % count for i in first] for shift in range(count)]
    return orders + [order[::-1] for order in orders] if count % 2 else orders
