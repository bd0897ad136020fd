"""Candidates that take turns in being timed, so that a slow moment affects all."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx

Chain = Callable[[int], None]
"""Repeats work `n` times, one after the other, and waits for the last."""

LEAST_GAIN = 0.02
"""One run shows no smaller difference, as a factor beyond 1
(docs/results/method.md)."""

# A shorter sample is mostly the wait at its end (some 20 us).
SAMPLE_SECONDS = 5e-3
_LONGEST_CHAIN = 64


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


def warm_up(
    candidate: ChainCandidate, limit: float, sample_seconds: float = SAMPLE_SECONDS
) -> float:
    """Run a candidate for the first time, and choose its length.

    Args:
        candidate: Candidate to prepare.
        limit: Seconds above which the candidate will not be timed.
        sample_seconds: Least seconds of a sample.

    Returns:
        Seconds of one repetition. Above the limit, those of the first run.
    """
    candidate.length = 1
    seconds = candidate.sample()
    if seconds > limit:
        return seconds
    seconds = candidate.sample()
    if seconds < sample_seconds:
        candidate.length = min(_LONGEST_CHAIN, math.ceil(sample_seconds / seconds))
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


def balanced_orders(count: int) -> list[list[int]]:
    """Return orders in which each follows each other equally often: ABBA, and so on.

    The work before leaves its mark on caches, threads and clock, so no candidate may
    always follow the same one. Williams (1949): 0, 1, n - 1, 2, n - 2 ... and its
    shifts; for an odd number also backwards.
    """
    first = [i // 2 + 1 if i % 2 else -(i // 2) for i in range(count)]
    orders = [[(i + shift) % count for i in first] for shift in range(count)]
    return orders + [order[::-1] for order in orders] if count % 2 else orders


def link(x: mx.array, y: mx.array) -> mx.array:
    """Return the x of the next product, which cannot begin before `y` exists.

    On a GPU, launches overlap unless one reads the output of the other, so a column of
    y is written into x. A CPU stream runs one operation after the other: there a
    dependency is enough, and it costs nothing.
    """
    if mx.default_device().type == mx.DeviceType.cpu:
        return mx.depends(x, y)
    return mx.slice_update(x, y[..., :1], mx.array([0]), (-1,))
