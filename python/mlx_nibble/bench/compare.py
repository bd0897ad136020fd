"""What changed from one run to another, beyond noise."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.statistics import Change, change, change_in_turns

OURS = "nibble"
"""Ours; in another mode its name has more words."""
# Runs of the same binary differ by up to 12 % where their own passes do not: where
# pages lie in memory changes from process to process (docs/bench.md has the figures).
LEAST_CHANGE = 0.15
# Where builds took turns, pass by pass in new processes, they do not: of 20 such pairs
# of one build no product differed by more (tests/unit/bench/test_bench_in_turns.py).
LEAST_CHANGE_IN_TURNS = 0.05
# What must be alike for seconds to mean the same.
_SAME_SETTINGS = ("hot", "model", "draft_model", "num_draft_tokens")
_SAME_MACHINE = ("cpu", "threads", "device", "gpu", "cpu_isa")


@dataclass(frozen=True)
class Comparison:
    """One thing that both runs measured.

    Attributes:
        case: What it is.
        candidate: Who did it.
        before: Median of the seconds.
        after: Likewise.
        change: None where there are too few passes.
        least: A change of less, as a factor beyond 1, is not reported.
    """

    case: dict[str, Any]
    candidate: str
    before: float
    after: float
    change: Change | None
    least: float

    @property
    def verdict(self) -> str:
        """ "slower", "faster", "same", or "unknown"."""
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
        ours: What is judged.
        others: Peers, which tell whether the machine was the same.
        warnings: Why the runs may not be comparable.
        unmatched: Cases of ours that only one of the runs has.
    """

    ours: tuple[Comparison, ...]
    others: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    unmatched: int

    @property
    def regressed(self) -> bool:
        """Whether anything of ours has become slower."""
        return any(c.verdict == "slower" for c in self.ours)


def in_turns(before: Capsule, after: Capsule) -> bool:
    """Whether two runs are of one measurement, in which builds took turns."""
    tokens = [c["settings"].get("in_turns") for c in (before, after)]
    return tokens[0] is not None and tokens[0] == tokens[1]


def compare(before: Capsule, after: Capsule, least: float | None = None) -> Outcome:
    """Compare two capsules of the same kind.

    Args:
        before: The one that is compared with.
        after: The new one.
        least: Changes of less are not reported, as a factor beyond 1. Default:
            :data:`LEAST_CHANGE`, or, of builds that took turns,
            :data:`LEAST_CHANGE_IN_TURNS`.

    Raises:
        ValueError: If they do not measure the same.
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
                f"[compare] the setting {name!r} must be the same but is {a} and {b}."
            )
    old, new = (dict(_measured(c)) for c in (before, after))
    both = [key for key in old if key in new]
    if not any(_is_ours(name) for _, name in both):
        raise ValueError("[compare] the runs have no case in common.")
    paired = in_turns(before, after)
    judge = change_in_turns if paired else change
    if least is None:
        least = LEAST_CHANGE_IN_TURNS if paired else LEAST_CHANGE
    # Each family of intervals holds together: ours are judged, others only shown.
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
