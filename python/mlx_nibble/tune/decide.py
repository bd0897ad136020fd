"""Chooses a candidate from samples: a pure function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlx_nibble.bench.statistics import Estimate, Passes, ratio
from mlx_nibble.machine.tuned_table import Choice
from mlx_nibble.machine.turns import LEAST_GAIN

PASSES = (12, 24, 48, 96)
"""Candidates that can no longer win are dropped after each of these numbers of passes.
After the last, the best median wins."""


def decide(samples: Mapping[str, Passes], tie: str | None = None) -> Choice:
    """Choose among candidates that took turns.

    A candidate must beat the leader by :data:`LEAST_GAIN` and beyond noise: its
    interval excludes 1. The intervals hold together for all candidates and all checks.
    After the last of :data:`PASSES` the noise no longer counts, since the median is the
    best guess. The fastest such candidate wins, else the leader.

    Args:
        samples: Seconds by candidate, in a list for each pass, the planner's own
            choice first. A candidate that was dropped has fewer passes, and loses.
        tie: Leader, if it is in all passes. Default: the planner's own choice.
    """
    own = next(iter(samples))
    last = len(samples[own]) >= PASSES[-1]
    leads = tie is not None and len(samples.get(tie, ())) == len(samples[own])
    leader = tie if tie is not None and leads else own
    best, gain = leader, 1.0
    for name, faster in _against(samples, leader):
        gains = faster.value >= 1 + LEAST_GAIN and (faster.low > 1 or last)
        if gains and faster.value > gain:
            best, gain = name, faster.value
    if best == own:
        return Choice(None)
    than_own = ratio(samples[own], samples[best])
    return Choice(best, than_own.value if than_own else gain)


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
