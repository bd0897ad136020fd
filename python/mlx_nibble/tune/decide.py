"""From samples to a choice: a pure function, the same each time."""

from __future__ import annotations

from collections.abc import Mapping

from mlx_nibble.bench.statistics import Passes, ratio
from mlx_nibble.tuning import Choice

LEAST_GAIN = 0.02
"""A candidate that gains less than this, beyond 1, is not worth leaving the planner's
own choice for: one run tells no smaller difference (docs/bench.md)."""


def decide(samples: Mapping[str, Passes]) -> Choice:
    """Choose among candidates that took turns.

    A candidate is taken if it beat the planner's own choice by :data:`LEAST_GAIN` and
    beyond noise: the intervals of all ratios, which hold together, leave out 1. Of
    several the fastest is taken. Ties and noise go to the planner.

    Args:
        samples: Seconds by candidate, a list for each pass, the planner's own choice
            first. One that was given up early has fewer passes, and is not taken.
    """
    (own, *others) = samples
    complete = [n for n in others if len(samples[n]) == len(samples[own])]
    best = Choice(None)
    for name in complete:
        faster = ratio(samples[own], samples[name], len(complete))
        wins = faster is not None and faster.low > 1 and faster.value >= 1 + LEAST_GAIN
        if faster is not None and wins and faster.value > best.faster:
            best = Choice(name, faster.value)
    return best
