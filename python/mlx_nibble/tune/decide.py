"""From samples to a choice: a pure function, the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlx_nibble.bench.statistics import Estimate, Passes, ratio
from mlx_nibble.machine.tuned_table import Choice

LEAST_GAIN = 0.02
"""A candidate that gains less than this, beyond 1, is not worth leaving the planner's
own choice for: one run tells no smaller difference (docs/bench.md)."""


PASSES = (12, 24, 48, 96)
"""Numbers of passes after which it is looked who can still win; all others take no
more turns. After the last the medians decide."""


def decide(samples: Mapping[str, Passes]) -> Choice:
    """Choose among candidates that took turns.

    A candidate is taken if it beat the planner's own choice by :data:`LEAST_GAIN` and
    beyond noise: the intervals of all ratios, which hold together, however often they
    are looked at, leave out 1. After all :data:`PASSES` it need not be beyond noise:
    then no more can be known, and the median is the best guess. Of several the fastest
    is taken. Ties, and until then noise, go to the planner.

    Args:
        samples: Seconds by candidate, a list for each pass, the planner's own choice
            first. One that was given up early has fewer passes, and is not taken.
    """
    own = next(iter(samples))
    last = len(samples[own]) >= PASSES[-1]
    best = Choice(None)
    for name, faster in _against(samples, own):
        gains = faster.value >= 1 + LEAST_GAIN and (faster.low > 1 or last)
        if gains and faster.value > best.faster:
            best = Choice(name, faster.value)
    return best


def contenders(samples: Mapping[str, Passes], chosen: str) -> set[str]:
    """Who may, for all that is known, be faster than who is chosen by more than
    :data:`LEAST_GAIN`."""
    return {
        name
        for name, faster in _against(samples, chosen)
        if faster.high > 1 + LEAST_GAIN
    }


def _against(samples: Mapping[str, Passes], one: str) -> Iterator[tuple[str, Estimate]]:
    """How many times as fast as one candidate the others are that took part in as
    many passes."""
    passes = len(samples[one])
    others = [n for n in samples if n != one and len(samples[n]) == passes]
    for name in others:
        faster = ratio(samples[one], samples[name], len(PASSES) * len(others))
        if faster is not None:
            yield name, faster
