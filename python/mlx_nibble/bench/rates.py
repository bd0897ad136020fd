"""What a run of a model says: tokens a second, by case and candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.statistics import Estimate, median, ratio


@dataclass(frozen=True)
class ModelCase:
    """What is measured of a model.

    Attributes:
        measure: "prompt" or "decode".
        mode: The name of a :class:`Mode`.
        batch: Sequences.
        context: Tokens of each prompt.
    """

    measure: str
    mode: str
    batch: int
    context: int

    @classmethod
    def alone(cls, measure: str, context: int) -> ModelCase:
        """One sequence, by mlx-lm's plain loop."""
        return cls(measure, "plain", 1, context)


def describe(case: ModelCase) -> str:
    """A case in a few words."""
    company = {"plain": "", "batched": f", batch {case.batch}"}
    return f"{case.measure}, context {case.context}" + company.get(
        case.mode, f", {case.mode}"
    )


@dataclass(frozen=True)
class ModelRow:
    """One candidate of one case, summarized.

    Attributes:
        seconds: Of one token, each of each sequence counted.
        faster: Times that ours was faster than it, of neighbours in time.
        passes: In which it took part.
        peak_bytes: Most memory in use, the model's included.
        accepted: Share of a draft model's proposals that were right.
    """

    case: ModelCase
    name: str
    seconds: Estimate
    faster: Estimate
    passes: int
    peak_bytes: int
    accepted: float | None

    @property
    def tokens_per_second(self) -> Estimate:
        """Of all sequences together."""
        low, high = 1 / self.seconds.high, 1 / self.seconds.low
        return Estimate(1 / self.seconds.value, low, high)

    @property
    def first_token_seconds(self) -> float | None:
        """Until all sequences have their first token; None of answers."""
        if self.case.measure != "prompt":
            return None
        return self.seconds.value * self.case.batch * self.case.context


def rows(capsule: Capsule) -> Iterator[ModelRow]:
    """Summaries of a capsule of a model, of what was measured."""
    for result in capsule["results"]:
        ours = result["candidates"].get("nibble", {})
        for name, candidate in result["candidates"].items():
            passes = candidate.get("passes", ())
            faster = ratio(passes, ours.get("passes", ()))
            if faster is None:
                continue
            yield ModelRow(
                ModelCase(**result["case"]),
                name,
                median([s for taken in passes for s in taken]),
                faster,
                sum(map(bool, passes)),
                candidate.get("peak_bytes", 0),
                candidate.get("accepted"),
            )
