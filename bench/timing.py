"""How things are timed: interleaved, cold, with their spread.

Machines are shared and their speed drifts. So candidates take turns in ABBA order
within one run, and what is reported is the median of the ratios of neighbours, not
a ratio of times taken minutes apart.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Samples:
    """Seconds of each timed call, in the order in which they were taken."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4)
        return low, high


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    seconds: float = 1.0,
    least: int = 5,
    most: int = 200,
) -> dict[str, Samples]:
    """Time each candidate in turn, forwards and then backwards (ABBA).

    Args:
        candidates: Calls that return when their work is done; one that measures
            itself, in a process of its own, returns the seconds, a float.
        seconds: Time to spend on all of them together; the slowest decides how
            many rounds fit.
        least: Rounds to make however long they take.
        most: Rounds to stop at.

    Returns:
        As many samples for each candidate.
    """
    for call in candidates.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    rounds = 0
    while rounds < least or (rounds < most and time.perf_counter() - start < seconds):
        order = list(candidates)
        for name in order if rounds % 2 == 0 else reversed(order):
            call = candidates[name]
            before = time.perf_counter()
            own = call()
            elapsed = time.perf_counter() - before
            taken[name].append(own if isinstance(own, float) else elapsed)
        rounds += 1
    return {name: Samples(tuple(s)) for name, s in taken.items()}


def ratios(slow: Samples, fast: Samples) -> Samples:
    """How many times faster `fast` was, round by round."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return Samples(tuple(a / b for a, b in pairs))


def last_level_cache_bytes() -> int:
    """The largest cache that Linux reports; 64 MiB where it reports none."""
    sizes = [64 << 20]
    base = "/sys/devices/system/cpu/cpu0/cache"
    if os.path.isdir(base):
        for entry in os.listdir(base):
            try:
                with open(f"{base}/{entry}/size") as f:
                    sizes.append(int(f.read().strip().rstrip("K")) << 10)
            except (OSError, ValueError):
                continue
    return max(sizes)


def threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_bandwidth(repeats: int = 7) -> float:
    """Bytes a second that all cores together read from memory, the best of some.

    Each thread takes the dot product of its own part of a buffer four times the
    last-level cache, through BLAS, which does little but read.
    """
    count = 4 * last_level_cache_bytes() // 4
    buffer = np.ones(count, np.float32)
    parts = np.array_split(buffer, threads())

    def read(part: np.ndarray) -> float:
        return float(np.dot(part, part))

    best = float("inf")
    with ThreadPoolExecutor(threads()) as pool:
        for _ in range(repeats):
            before = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - before)
    return buffer.nbytes / best


def rotation(count: int) -> Callable[[], int]:
    """A call that returns 0, 1, ... count - 1, 0, 1 ..."""
    state = {"next": -1}

    def advance() -> int:
        state["next"] = (state["next"] + 1) % count
        return state["next"]

    return advance


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text in columns; the first row is the heading."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)
