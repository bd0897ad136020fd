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
"""With fewer, a run is not compared."""


@dataclass(frozen=True)
class Estimate:
    """A value, and the interval that holds the true one at :data:`CONFIDENCE`."""

    value: float
    low: float
    high: float

    def __contains__(self, other: float) -> bool:
        """Whether a value may be the true one."""
        return self.low <= other <= self.high


def median(samples: Sequence[float], comparisons: int = 1) -> Estimate:
    """The median of at least one sample, with its bootstrap interval.

    With `comparisons`, the intervals of so many medians hold together.

    Neighbours in time are alike, so blocks of n^(1/3) of them are drawn, in a circle
    (Politis and Romano 1992). The draws are the same every time.
    """
    values = np.asarray(samples, float)
    n = len(values)
    block = max(1, round(n**_BLOCK_EXPONENT))
    rng = np.random.default_rng(0)
    draws = _DRAWS * (1 + (comparisons > 1))
    starts = rng.integers(0, n, (draws, -(-n // block), 1))
    drawn = (starts + np.arange(block)) % n
    medians = np.median(values[drawn.reshape(draws, -1)[:, :n]], axis=1)
    tail = (1 - CONFIDENCE) / comparisons / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    return Estimate(float(np.median(values)), float(low), float(high))


@dataclass(frozen=True)
class Change:
    """From one run to another, as a factor of the seconds: 1.1 is slower.

    Attributes:
        factor: With its interval, which holds for all comparisons together.
        beyond_noise: The interval leaves out 1.
    """

    factor: Estimate
    beyond_noise: bool


def change(
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    comparisons: int = 1,
) -> Change | None:
    """Compare two runs of the same thing.

    A pass counts as one observation, its median, for what disturbs a machine lasts
    longer than a sample. Since it only ever makes things slower, runs are compared by
    the lower quartile of their passes. The interval is that of a bootstrap of passes,
    with Bonferroni's correction: all intervals hold together.

    Args:
        before: Seconds, a list for each pass.
        after: Likewise, of the other run.
        comparisons: How many are made.

    Returns:
        None where there are too few passes to tell.
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
