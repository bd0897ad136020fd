"""Medians, ratios and changes of timed samples, each with its interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
# The bounds of an interval move by a fiftieth of its width from seed to seed.
_DRAWS = 2000
# Enough for the tails of a hundred comparisons.
_RESAMPLES = 10_000
_BLOCK_EXPONENT = 1 / 3
_QUARTILE = 0.25
LEAST_PASSES = 5
"""A run with fewer passes is not compared."""

Passes = Sequence[Sequence[float]]
"""Seconds, in a list for each pass."""


@dataclass(frozen=True)
class Estimate:
    """A value, and its interval at :data:`CONFIDENCE`."""

    value: float
    low: float
    high: float

    def __contains__(self, other: float) -> bool:
        """Return whether a value may be the true one."""
        return self.low <= other <= self.high


def spread(samples: Sequence[float]) -> Estimate:
    """Return the median of a few samples, with their range in place of an interval."""
    return Estimate(statistics.median(samples), min(samples), max(samples))


def median(samples: Sequence[float]) -> Estimate:
    """Return the median of at least one sample, with its bootstrap interval.

    Neighbours in time are alike, so blocks of n^(1/3) samples are drawn, in a circle
    (Politis and Romano 1992). The draws are the same every time.
    """
    values = np.asarray(samples, float)
    n = len(values)
    block = max(1, round(n**_BLOCK_EXPONENT))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, n, (_DRAWS, -(-n // block), 1))
    drawn = (starts + np.arange(block)) % n
    medians = np.median(values[drawn.reshape(_DRAWS, -1)[:, :n]], axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Estimate(float(np.median(values)), float(low), float(high))


def ratio(a: Passes, b: Passes, comparisons: int = 1) -> Estimate | None:
    """Return the ratio of the seconds of `a` to those of `b`, which took turns.

    Samples of one pass share their memory and the state of the machine. A pass is
    therefore one observation: the median of the ratios of neighbours in time. The value
    is the median of the observations. The interval goes from one observation to
    another, by the binomial distribution (Thompson 1936). It holds for every
    distribution, if passes are independent.

    Args:
        a: At least one pass.
        b: Passes of the same rounds; an interrupted run may have fewer.
        comparisons: Number of ratios whose intervals hold together (Bonferroni).

    Returns:
        None if no round is complete. With fewer than :func:`passes_needed` passes the
        interval is their range, which holds less often.
    """
    pairs = [
        [x / y for x, y in zip(*both, strict=False)] for both in zip(a, b, strict=False)
    ]
    ordered = sorted(statistics.median(pair) for pair in pairs if pair)
    if not ordered:
        return None
    rank = _rank(len(ordered), comparisons)
    return Estimate(statistics.median(ordered), ordered[rank], ordered[-1 - rank])


def passes_needed(comparisons: int = 1) -> int:
    """Return the least number of passes whose range is an interval at the confidence.

    The confidence is :data:`CONFIDENCE`.
    """
    return 1 + math.ceil(math.log2(comparisons / (1 - CONFIDENCE)))


def _rank(n: int, comparisons: int) -> int:
    """Return the number of observations to leave out on each side of the interval."""
    tail = (1 - CONFIDENCE) / comparisons / 2
    rank, below = 0, 1 / 2**n  # of integers: n may be above 1000
    while rank < (n - 1) // 2:
        below += math.comb(n, rank + 1) / 2**n
        if below > tail:
            break
        rank += 1
    return rank


@dataclass(frozen=True)
class Change:
    """The change from one run to another, as a factor of the seconds.

    Attributes:
        factor: The factor, 1.1 is slower. Its interval holds for all comparisons.
        beyond_noise: Whether the interval excludes 1.
    """

    factor: Estimate
    beyond_noise: bool


def change_in_turns(
    before: Passes, after: Passes, comparisons: int = 1
) -> Change | None:
    """Compare two builds that took turns: see :mod:`mlx_nibble.bench.in_turns`.

    Args:
        before: Seconds, in a list for each pass.
        after: Seconds of the other build, in the same rounds.
        comparisons: Number of comparisons.

    Returns:
        None if there are too few passes.
    """
    pairs = sum(bool(a and b) for a, b in zip(before, after, strict=False))
    factor = ratio(after, before, comparisons)
    if factor is None or pairs < passes_needed(comparisons):
        return None
    return Change(factor, 1.0 not in factor)


def change(before: Passes, after: Passes, comparisons: int = 1) -> Change | None:
    """Compare two runs of the same work.

    A pass counts as one observation, its median, since a disturbance lasts longer than
    a sample. Disturbances only make work slower, so runs are compared by the lower
    quartile of their passes. The interval is a bootstrap over passes, with Bonferroni's
    correction: all intervals hold together.

    Args:
        before: Seconds, in a list for each pass.
        after: Seconds of the other run.
        comparisons: Number of comparisons.

    Returns:
        None if there are too few passes.
    """
    runs = [np.log([statistics.median(p) for p in run if p]) for run in (before, after)]
    if min(map(len, runs)) < LEAST_PASSES:
        return None
    rng = np.random.default_rng(0)
    a, b = (
        np.quantile(rng.choice(run, (_RESAMPLES, len(run))), _QUARTILE, axis=1)
        for run in runs
    )
    tail = (1 - CONFIDENCE) / comparisons / 2
    low, high = np.quantile(b - a, (tail, 1 - tail))
    middle = np.quantile(runs[1], _QUARTILE) - np.quantile(runs[0], _QUARTILE)
    interval = Estimate(*(math.exp(float(v)) for v in (middle, low, high)))
    return Change(interval, 1.0 not in interval)
