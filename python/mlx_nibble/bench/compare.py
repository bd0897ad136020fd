"""Finds the changes between two runs, beyond noise."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.statistics import Change, change, change_in_turns

OURS = "nibble"
"""Name of our candidates; other modes of ours add words to it."""
# Runs of one binary differ by up to 12 %, although the passes of each run agree: the
# place of pages in memory changes with the process (docs/results/method.md).
LEAST_CHANGE = 0.15
# Builds that take turns, each pass in a new process, differ less: in 20 pairs of one
# build no product differed by more (tests/unit/bench/test_bench_in_turns.py).
LEAST_CHANGE_IN_TURNS = 0.05
# Settings and parts of the machine that must agree for seconds to be comparable.
_SAME_SETTINGS = ("hot", "model", "draft_model", "num_draft_tokens")
_SAME_MACHINE = ("cpu", "threads", "device", "gpu", "cpu_isa")


@dataclass(frozen=True)
class Comparison:
    """One candidate of one case that both runs measured.

    Attributes:
        case: The case.
        candidate: Name of the candidate.
        before: Median of the seconds of the first run.
        after: Median of the seconds of the second run.
        change: The change; None if there are too few passes.
        least: Smallest change to report, as a factor beyond 1.
    """

    case: dict[str, Any]
    candidate: str
    before: float
    after: float
    change: Change | None
    least: float

    @property
    def verdict(self) -> str:
        """Return "slower", "faster", "same", or "unknown"."""
        if self.change is None:
            return "unknown"
        if not self.change.beyond_noise:
            return "same"
        factor = self.change.factor.value
        if factor > 1 + self.least:
            return "slower"
        return "faster" if factor < 1 / (1 + self.least) else "same"


@dataclass(frozen=True)
class Outcome:
    """All comparisons of two runs.

    Attributes:
        ours: Our candidates, which are judged.
        others: Peers, which show whether the machine was the same.
        warnings: Reasons why the runs may not be comparable.
        unmatched: Number of our cases that only one of the runs has.
    """

    ours: tuple[Comparison, ...]
    others: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    unmatched: int

    @property
    def regressed(self) -> bool:
        """Whether one of our candidates has become slower."""
        return any(c.verdict == "slower" for c in self.ours)


def in_turns(before: Capsule, after: Capsule) -> bool:
    """Return whether two runs are one measurement of builds that took turns."""
    tokens = [c["settings"].get("in_turns") for c in (before, after)]
    return tokens[0] is not None and tokens[0] == tokens[1]


def compare(before: Capsule, after: Capsule, least: float | None = None) -> Outcome:
    """Compare two capsules of the same kind.

    Args:
        before: The old run.
        after: The new run.
        least: Smallest change to report, as a factor beyond 1. Default:
            :data:`LEAST_CHANGE`, or :data:`LEAST_CHANGE_IN_TURNS` for builds that
            took turns.

    Raises:
        ValueError: If the runs do not measure the same.
    """
    if before["kind"] != after["kind"]:
        raise ValueError(
            f"[compare] two runs of one kind are required but got {before['kind']!r} "
            f"and {after['kind']!r}."
        )
    for name in _SAME_SETTINGS:
        a, b = (c["settings"].get(name) for c in (before, after))
        if a != b:
            raise ValueError(
                f"[compare] the setting {name!r} must be the same but got {a} and {b}."
            )
    old, new = (dict(_measured(c)) for c in (before, after))
    both = [key for key in old if key in new]
    if not any(_is_ours(name) for _, name in both):
        raise ValueError(
            "[compare] two runs of a case are required but got no case in common."
        )
    paired = in_turns(before, after)
    judge = change_in_turns if paired else change
    if least is None:
        least = LEAST_CHANGE_IN_TURNS if paired else LEAST_CHANGE
    # The intervals of ours hold together, and those of the others: only ours judge.
    counts = {
        own: sum(_is_ours(name) == own for _, name in both) for own in (True, False)
    }
    found = []
    for key in both:
        case, name = key
        a, b = old[key], new[key]
        found.append(
            Comparison(
                json.loads(case),
                name,
                statistics.median(s for taken in a for s in taken),
                statistics.median(s for taken in b for s in taken),
                judge(a, b, counts[_is_ours(name)]),
                least,
            )
        )
    ours = {key for key in old.keys() ^ new.keys() if _is_ours(key[1])}
    return Outcome(
        tuple(c for c in found if _is_ours(c.candidate)),
        tuple(c for c in found if not _is_ours(c.candidate)),
        tuple(_warnings(before, after)),
        len(ours),
    )


def _is_ours(candidate: str) -> bool:
    return candidate.partition(" ")[0] == OURS


def _measured(capsule: Capsule) -> Iterator[tuple[tuple[str, str], list[list[float]]]]:
    for result in capsule["results"]:
        case = json.dumps(result["case"], sort_keys=True)
        for name, candidate in result["candidates"].items():
            passes = candidate.get("passes", ())
            if any(passes):
                yield (case, name), passes


def _warnings(before: Capsule, after: Capsule) -> Iterator[str]:
    for key in _SAME_MACHINE:
        a, b = (c["machine"].get(key) for c in (before, after))
        if a != b:
            yield f"not the same machine: {key} is {a} and {b}"
    for key in ("mlx", "numpy"):
        a, b = (c["versions"].get(key) for c in (before, after))
        if a != b:
            yield f"not the same {key}: {a} and {b}"
    for name, capsule in (("first", before), ("second", after)):
        if not capsule.get("complete"):
            yield f"the {name} run was interrupted"
