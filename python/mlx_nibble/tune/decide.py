"""Chooses a candidate from samples: a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlx_nibble.bench.statistics import Estimate, Passes, ratio
from mlx_nibble.machine.tuned_table import Choice
from mlx_nibble.machine.turns import LEAST_GAIN

PASSES = (12, 24, 48, 96)
"""Candidates that can no longer win are dropped after each of these numbers of passes.
After the last, the best median wins."""


def decide(samples: Mapping[str, Passes]) -> Choice:
    """Choose among candidates that took turns.

    A candidate must beat the planner's own choice by :data:`LEAST_GAIN` and beyond
    noise: its interval excludes 1. The intervals hold together for all candidates and
    all checks. After the last of :data:`PASSES` the noise no longer counts, since the
    median is the best guess. The fastest such candidate wins, else the planner.

    Args:
        samples: Seconds by candidate, in a list for each pass, the planner's own
            choice first. A candidate that was dropped has fewer passes, and loses.
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
    """Return the candidates that may still beat the chosen one.

    They may be faster by more than :data:`LEAST_GAIN`.
    """
    return {
        name
        for name, faster in _against(samples, chosen)
        if faster.high > 1 + LEAST_GAIN
    }


def _against(samples: Mapping[str, Passes], one: str) -> Iterator[tuple[str, Estimate]]:
    """Yield the speedup over one candidate of each other with as many passes."""
    passes = len(samples[one])
    others = [n for n in samples if n != one and len(samples[n]) == passes]
    for name in others:
        faster = ratio(samples[one], samples[name], len(PASSES) * len(others))
        if faster is not None:
            yield name, faster
