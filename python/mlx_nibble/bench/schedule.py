"""Passes of candidates in turns, repeated if other programs were at work."""

from __future__ import annotations

import time
from collections.abc import Mapping

from mlx_nibble.bench.machine import busy_elsewhere
from mlx_nibble.machine.turns import Candidate, take_pass

DROPPED = 2
"""Disturbed passes of a case that are dropped before one is kept as it is."""

# Share of one core's time taken by other programs; less hardly shows.
_OTHERS_SHARE = 0.1
# Two ticks of the clock by which the system counts busy time.
_CLOCK_ERROR = 0.02


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
