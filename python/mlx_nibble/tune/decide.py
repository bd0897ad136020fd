"""From samples to a choice: a pure function, the same each time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlx_nibble.bench.statistics import Estimate, Passes, ratio
from mlx_nibble.tuning import Choice

LEAST_GAIN = 0.02
"""A candidate that gains less than this, beyond 1, is not worth leaving the planner's
own choice for: one run tells no smaller difference (docs/bench.md)."""


PASSES = (12, 24, 48)
"""Numbers of passes after which it is looked whether a choice can be made; where it
cannot be, the rest is measured too."""


def decide(samples: Mapping[str, Passes]) -> Choice:
    """Choose among candidates that took turns.

    A candidate is taken if it beat the planner's own choice by :data:`LEAST_GAIN` and
    beyond noise: the intervals of all ratios, which hold together, however often they
    are looked at, leave out 1. Of several the fastest is taken. Ties and noise go to
    the planner.

    Args:
        samples: Seconds by candidate, a list for each pass, the planner's own choice
            first. One that was given up early has fewer passes, and is not taken.
    """
    best = Choice(None)
    for name, faster in _rivals(samples):
        if faster.low > 1 and faster.value > best.faster:
            best = Choice(name, faster.value)
    return best


def undecided(samples: Mapping[str, Passes]) -> bool:
    """Whether more passes might find something faster than what :func:`decide` does."""
    best = decide(samples).faster
    return any(
        faster.low <= 1 and faster.value > best for _, faster in _rivals(samples)
    )


def _rivals(samples: Mapping[str, Passes]) -> Iterator[tuple[str, Estimate]]:
    """Candidates that seem to gain enough, and how many times as fast they are."""
    (own, *others) = samples
    complete = [n for n in others if len(samples[n]) == len(samples[own])]
    for name in complete:
        faster = ratio(samples[own], samples[name], len(PASSES) * len(complete))
        if faster is not None and faster.value >= 1 + LEAST_GAIN:
            yield name, faster
