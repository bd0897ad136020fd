"""Summaries of a run of a model: tokens per second, by case and candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.statistics import Estimate, median, ratio


@dataclass(frozen=True)
class ModelCase:
    """One measurement of a model.

    Attributes:
        measure: "prompt" or "decode".
        mode: Name of a :class:`Mode`.
        batch: Number of sequences.
        context: Tokens of each prompt.
    """

    measure: str
    mode: str
    batch: int
    context: int

    @classmethod
    def alone(cls, measure: str, context: int) -> ModelCase:
        """Return the case of one sequence in mlx-lm's plain loop."""
        return cls(measure, "plain", 1, context)


def describe(case: ModelCase) -> str:
    """Return a short description of a case."""
    company = {"plain": "", "batched": f", batch {case.batch}"}
    return f"{case.measure}, context {case.context}" + company.get(
        case.mode, f", {case.mode}"
    )


@dataclass(frozen=True)
class ModelRow:
    """Summary of one candidate of one case.

    Attributes:
        case: The case.
        name: Name of the candidate.
        seconds: Seconds of one token, with the tokens of all sequences counted.
        faster: Speedup of ours over the candidate, from neighbours in time.
        passes: Number of passes with the candidate.
        peak_bytes: Peak memory, including the model.
        accepted: Share of a draft model's tokens that were accepted.
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
        """Tokens per second of all sequences together."""
        low, high = 1 / self.seconds.high, 1 / self.seconds.low
        return Estimate(1 / self.seconds.value, low, high)

    @property
    def first_token_seconds(self) -> float | None:
        """Seconds until all sequences have their first token; None for decoding."""
        if self.case.measure != "prompt":
            return None
        return self.seconds.value * self.case.batch * self.case.context


def rows(capsule: Capsule) -> Iterator[ModelRow]:
    """Yield a summary of each measured candidate."""
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
