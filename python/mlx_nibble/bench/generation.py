"""Times mlx-lm's own loops: prompts and answers, of one sequence or several.

An answer begins at the end of a prompt, from caches that any configuration may have
filled. So a slow configuration is timed at long contexts without reading them.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nibble import lm

Prompts = Sequence[Sequence[int]]
Models = Sequence[nn.Module]


@dataclass(frozen=True)
class State:
    """The state at the beginning of an answer.

    Attributes:
        caches: A prompt cache for each sequence.
        tokens: Next token of each sequence.
    """

    caches: list[list[Any]]
    tokens: list[int]


@dataclass(frozen=True)
class Answer:
    """The result of a timed answer.

    Attributes:
        seconds: Seconds of all timed tokens.
        tokens: Timed tokens of each sequence.
        accepted: Share of a draft model's tokens that were accepted.
    """

    seconds: float
    tokens: int
    accepted: float | None = None


@dataclass(frozen=True)
class Mode:
    """One way to generate.

    Attributes:
        name: Name in capsules.
        models: Number of models at work.
        read: Function of models, prompts and prefill step size. Returns the seconds
            until the first token of each answer.
        begin: Function of the same arguments. Returns the state before the answers.
        answer: Function of models, state and number of tokens. Times these tokens, for
            each sequence, after an untimed first token.
    """

    name: str
    models: int
    read: Callable[[Models, Prompts, int], float]
    begin: Callable[[Models, Prompts, int], State]
    answer: Callable[[Models, State, int], Answer]


def plain() -> Mode:
    """Return the mode of one sequence, by mlx-lm's ``generate_step``."""

    def read(models: Models, prompts: Prompts, step_size: int) -> float:
        start = time.perf_counter()
        steps = lm.loops.generate_step(
            mx.array(list(prompts[0])),
            models[0],
            max_tokens=1,
            prefill_step_size=step_size,
        )
        with _finished(steps):
            next(steps)
            return time.perf_counter() - start

    def answer(models: Models, state: State, tokens: int) -> Answer:
        steps = lm.loops.generate_step(
            mx.array(state.tokens),
            models[0],
            max_tokens=tokens + 1,
            prompt_cache=copy.deepcopy(state.caches[0]),
        )
        with _finished(steps):
            next(steps)
            start = time.perf_counter()
            for _ in steps:
                pass
            return Answer(time.perf_counter() - start, tokens)

    return Mode("plain", 1, read, _fill, answer)


def batched() -> Mode:
    """Return the mode of several sequences, by mlx-lm's ``BatchGenerator``.

    All prompts are read together, so that reading and answering are separate.
    """

    def read(models: Models, prompts: Prompts, step_size: int) -> float:
        start = time.perf_counter()
        with _batch(models[0], len(prompts), 2, step_size) as generator:
            generator.insert([list(prompt) for prompt in prompts])
            generator.next_generated()
            return time.perf_counter() - start

    def answer(models: Models, state: State, tokens: int) -> Answer:
        count = len(state.tokens)
        # One more token than asked: the last of a sequence has its cache cut out.
        with _batch(models[0], count, tokens + 2) as generator:
            caches = copy.deepcopy(state.caches)
            generator.insert([[token] for token in state.tokens], caches=caches)
            generator.next_generated()
            start = time.perf_counter()
            for _ in range(tokens):
                generator.next_generated()
            return Answer(time.perf_counter() - start, tokens)

    return Mode("batched", 1, read, _fill, answer)


def speculative(num_draft_tokens: int) -> Mode:
    """Return the mode of one sequence and two models.

    It uses mlx-lm's ``speculative_generate_step``.
    """

    def steps_of(models: Models, tokens: Sequence[int], **options: Any) -> Any:
        return lm.loops.speculative_generate_step(
            mx.array(list(tokens)),
            models[0],
            models[1],
            num_draft_tokens=num_draft_tokens,
            **options,
        )

    def read(models: Models, prompts: Prompts, step_size: int) -> float:
        start = time.perf_counter()
        steps = steps_of(models, prompts[0], prefill_step_size=step_size)
        with _finished(steps):
            next(steps)
            return time.perf_counter() - start

    def answer(models: Models, state: State, tokens: int) -> Answer:
        steps = steps_of(
            models,
            state.tokens,
            # Without the surplus it would end inside a round; ours ends after one.
            max_tokens=tokens + 3 * (num_draft_tokens + 1),
            prompt_cache=copy.deepcopy(state.caches[0]),
        )
        with _finished(steps):
            for *_, drafted in steps:
                if not drafted:
                    break
            start = time.perf_counter()
            counted = rounds = 0
            for *_, drafted in steps:
                counted += 1
                rounds += not drafted
                if not drafted and counted >= tokens:
                    break
            seconds = time.perf_counter() - start
        accepted = (counted - rounds) / (rounds * num_draft_tokens)
        return Answer(seconds, counted, accepted)

    return Mode("speculative", 2, read, _fill, answer)


def _fill(models: Models, prompts: Prompts, step_size: int) -> State:
    """Read each prompt except its last token into new caches of all models."""
    caches = []
    for prompt in prompts:
        caches.append([])
        for model in models:
            cache = lm.make_prompt_cache(model)
            # A cache without history cannot join a batch.
            text = mx.array(list(prompt[:-1]))[None]
            for start in range(0, text.shape[1], step_size):
                model(text[:, start : start + step_size], cache=cache)
                mx.eval([layer.state for layer in cache])
            caches[-1] += cache
    return State(caches, [prompt[-1] for prompt in prompts])


@contextmanager
def _batch(
    model: nn.Module, count: int, tokens: int, step_size: int = 2048
) -> Iterator[Any]:
    generator = lm.loops.BatchGenerator(
        model,
        max_tokens=tokens,
        completion_batch_size=count,
        prefill_batch_size=count,
        prefill_step_size=step_size,
    )
    try:
        yield generator
    finally:
        generator.close()
        mx.synchronize(lm.loops.generation_stream)


@contextmanager
def _finished(steps: Any) -> Iterator[None]:
    """Wait until a generator computes nothing: it is a token ahead of its reader."""
    try:
        yield
    finally:
        steps.close()
        mx.synchronize(lm.loops.generation_stream)
