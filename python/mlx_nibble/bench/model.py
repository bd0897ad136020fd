"""Measures a model in turns, ours and mlx-lm's: prompts and answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import mlx.core as mx

from mlx_nibble.bench import generation, peaks
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.generation import Mode, Prompts
from mlx_nibble.bench.rates import ModelCase, describe
from mlx_nibble.bench.schedule import take_quiet_pass
from mlx_nibble.bench.subject import OURS, Configuration, Subject
from mlx_nibble.progress import Progress

# Two prompts predict the time of others: a GPU reads 32 tokens in about the time of 8,
# MLX on a CPU in four times as long.
_SHORT, _LONGER = 8, 32
# A first reading that takes longer is not repeated.
_SLOW_SECONDS = 4.0
# Tokens between the starts of a batch's prompts.
_STRIDE = 61
# Cost of a turn in timed costs: it also changes the configuration and runs a token.
_OVERHEAD = 1.1


@dataclass(frozen=True)
class ModelOptions:
    """Options of a run.

    Attributes:
        seconds: Time for each case; a peer may take the same once more.
        passes: Number of passes that share the time.
        max_tokens: Maximum of timed tokens of an answer.
        prefill_step_size: Tokens of a prompt to process at a time.
    """

    seconds: float = 10.0
    passes: int = 6
    max_tokens: int = 32
    prefill_step_size: int = 2048


@dataclass
class Turn:
    """One configuration in one case.

    Attributes:
        subject: The model.
        configuration: The configuration.
        models: Number of the subject's models at work.
        found: Receives the results beside the samples.
        work: Function that returns the seconds of one token.
        cost: Expected seconds of a sample, with its overhead.
        shares: Number of passes in which it takes part.
        passes: Seconds of one token for each sample, in a list for each pass.
    """

    subject: Subject
    configuration: Configuration
    models: int
    found: dict[str, Any]
    work: Callable[[], float] = float
    cost: float = 0.0
    shares: int = 1
    passes: list[list[float]] = field(default_factory=list)

    def sample(self) -> float:
        """Return the seconds of one token."""
        self.subject.become(self.configuration)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        seconds = self.work()
        # Arrays of other configurations are in memory, too: they are not counted.
        peak = self.subject.nbytes(self.models) + mx.get_peak_memory() - before
        self.found["peak_bytes"] = max(peak, self.found.get("peak_bytes", 0))
        return seconds


def run(
    subject: Subject,
    configurations: Sequence[Configuration],
    groups: Sequence[tuple[Mode, int, int]],
    text: Sequence[int],
    settings: ModelOptions,
    capsule: Capsule,
    progress: Progress,
) -> None:
    """Measure all groups into a capsule.

    After an interruption the capsule holds the finished samples.

    Args:
        subject: The model.
        configurations: Configurations that take turns; :data:`OURS` first.
        groups: Modes, each with its sequences and the tokens of each prompt.
        text: Tokens that prompts are taken from.
        settings: Options of the run.
        capsule: Receives peaks and results.
        progress: Called before each step, with the seconds spent and all seconds.
    """
    _Run(subject, configurations, groups, text, settings, capsule, progress).go()


class _Run:
    def __init__(
        self,
        subject: Subject,
        configurations: Sequence[Configuration],
        groups: Sequence[tuple[Mode, int, int]],
        text: Sequence[int],
        settings: ModelOptions,
        capsule: Capsule,
        progress: Progress,
    ) -> None:
        self.subject, self.configurations, self.groups = subject, configurations, groups
        self.text, self.settings, self.capsule = text, settings, capsule
        self.progress = progress
        self.start = time.perf_counter()
        self.paces: dict[Configuration, Callable[[int], float]] = {}

    def go(self) -> None:
        self.say("bandwidth and multiplications", 0)
        dtype = "float16" if self.capsule["machine"]["device"] == "gpu" else "float32"
        self.capsule["peaks"] = asdict(peaks.measure(dtype))
        for configuration in self.configurations:
            self.say(f"{configuration.name}: first tokens", 0)
            self.paces[configuration] = self.pace(configuration)
        for index, (mode, batch, context) in enumerate(self.groups):
            prompts = self.prompts(batch, context)
            for measure in ("prompt", "decode"):
                case = ModelCase(measure, mode.name, batch, context)
                self.measure(case, index, mode, prompts)
        # The machine may have been busy at the beginning.
        again = asdict(peaks.measure(dtype))
        found = self.capsule["peaks"]
        self.capsule["peaks"] = {k: max(v, again[k]) for k, v in found.items()}
        self.capsule["complete"] = True

    def prompts(self, batch: int, context: int) -> Prompts:
        wanted = context + _STRIDE * batch
        text = list(self.text) * -(-wanted // len(self.text))
        return [text[_STRIDE * i :][:context] for i in range(batch)]

    def pace(self, configuration: Configuration) -> Callable[[int], float]:
        """Return the seconds of a prompt as a function of its tokens.

        Two short prompts predict them.
        """
        self.subject.become(configuration)
        read, models = generation.plain().read, self.subject.models
        first = read(models, self.prompts(1, _SHORT), _SHORT)
        if first > _SLOW_SECONDS:
            return lambda tokens: first * tokens / _SHORT
        short = read(models, self.prompts(1, _SHORT), _SHORT)
        longer = read(models, self.prompts(1, _LONGER), _LONGER)
        slope = max(longer - short, 0) / (_LONGER - _SHORT)
        least = short / _SHORT
        return lambda tokens: max(least, longer + slope * (tokens - _LONGER))

    def measure(
        self, case: ModelCase, index: int, mode: Mode, prompts: Prompts
    ) -> None:
        """Measure all passes of a case."""
        result = {"case": asdict(case), "candidates": {}, "disturbed": 0}
        self.say(describe(case), index)
        enter = self.reading if case.measure == "prompt" else self.answering
        turns = enter(case, mode, prompts, result["candidates"])
        self.capsule["results"].append(result)
        settings = self.settings
        for number in range(settings.passes):
            taking = {
                name: turn
                for name, turn in turns.items()
                # The shares spread evenly, from the first pass on.
                if number * turn.shares % settings.passes < turn.shares
            }
            self.say(describe(case), index, number / settings.passes)
            share = settings.seconds / settings.passes
            result["disturbed"] += take_quiet_pass(taking, share) if taking else 0
            for name in turns.keys() - taking.keys():
                turns[name].passes.append([])
            self.capsule["seconds"] = time.perf_counter() - self.start

    def reading(
        self, case: ModelCase, mode: Mode, prompts: Prompts, found: dict[str, Any]
    ) -> dict[str, Turn]:
        """Return the turns that read the prompts, after one reading each."""
        tokens = case.batch * case.context
        turns = {}

        def read() -> float:
            size = self.settings.prefill_step_size
            return mode.read(self.subject.models, prompts, size) / tokens

        for configuration in self.configurations:
            turn = self.turn(configuration, mode, found)
            turn.work = read
            if self.admit(turn, self.paces[configuration](tokens), "a prompt"):
                turns[configuration.name] = turn
                if turn.cost <= self.budget(configuration):
                    # The first prompt of a size allocates. And a long prompt is read
                    # faster than two short ones predict.
                    before = time.perf_counter()
                    turn.sample()
                    self.admit(turn, time.perf_counter() - before, "a prompt")
        return turns

    def answering(
        self, case: ModelCase, mode: Mode, prompts: Prompts, found: dict[str, Any]
    ) -> dict[str, Turn]:
        """Return the turns that answer, each with the tokens that fit into a pass."""
        models, settings = self.subject.models, self.settings
        self.subject.become(OURS)
        state = mode.begin(models, prompts, settings.prefill_step_size)
        turns = {}
        for configuration in self.configurations:
            turn = self.turn(configuration, mode, found)
            # A step takes at least the time of reading as many tokens.
            least = 2 * self.paces[configuration](case.batch)
            if not self.admit(turn, least, "two tokens"):
                continue
            self.subject.become(configuration)
            once = mode.answer(models, state, 1)
            step = _OVERHEAD * once.seconds / once.tokens
            share = self.budget(configuration) / settings.passes
            length = max(1, min(settings.max_tokens, int(share / step) - 1))
            turn.found["chain"] = length

            def answer(
                length: int = length, found: dict[str, Any] = turn.found
            ) -> float:
                answer = mode.answer(models, state, length)
                if answer.accepted is not None:
                    found["accepted"] = answer.accepted
                return answer.seconds / (answer.tokens * case.batch)

            turn.work = answer
            if self.admit(turn, (length + 1) * step, f"{length + 1} tokens"):
                turns[configuration.name] = turn
        return turns

    def turn(
        self, configuration: Configuration, mode: Mode, found: dict[str, Any]
    ) -> Turn:
        entry = found[configuration.name] = {}
        return Turn(self.subject, configuration, mode.models, entry)

    def admit(self, turn: Turn, cost: float, what: str) -> bool:
        """Set the passes that a turn's cost allows; return False if a peer has none."""
        passes = self.settings.passes
        turn.cost = cost
        turn.shares = min(passes, int(self.budget(turn.configuration) / cost))
        if turn.shares == 0 and not turn.configuration.accelerated:
            turn.found.clear()
            turn.found["skipped"] = f"it would need about {cost:.1f} s for {what}"
            return False
        turn.shares = max(turn.shares, 1)
        turn.found["passes"] = turn.passes
        turn.found.pop("limited", None)
        if turn.shares < passes:
            turn.found["limited"] = (
                f"about {cost:.1f} s for {what}: {turn.shares} of {passes} passes"
            )
        return True

    def budget(self, configuration: Configuration) -> float:
        """Return the seconds of a case; ours share them, a peer has its own."""
        ours = [c for c in self.configurations if c.accelerated]
        sharing = len(ours) if configuration.accelerated else 1
        return self.settings.seconds / sharing

    def say(self, what: str, index: int, part: float = 0) -> None:
        """Report the current step, the seconds spent and the expected total."""
        left = sum(self.expected(*group[1:]) for group in self.groups[index:])
        if self.groups and what.startswith("decode"):
            part = (1 + part) / 2
        left -= part * self.expected(*self.groups[index][1:])
        done = time.perf_counter() - self.start
        self.progress(what, done, done + left)

    def expected(self, batch: int, context: int) -> float:
        """Return the expected seconds of a group, from the pace of prompts."""
        limit = self.settings.seconds
        total = 0.0
        for tokens in (batch * context, 2 * batch):
            total += limit
            for configuration, pace in self.paces.items():
                cost = pace(tokens)
                if configuration.accelerated:
                    total += max(0, cost - limit)
                elif cost < limit:
                    total += cost * max(1, int(limit / cost)) / 2
        return total
