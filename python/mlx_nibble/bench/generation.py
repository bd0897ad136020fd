"""Read prompts and answer them, timed: mlx-lm's own loops, plain and in company.

Answering begins where a prompt ends, from caches that any configuration may have
filled: so that a slow one is timed at long contexts without reading them.
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
    """Where an answer begins.

    Attributes:
        caches: A prompt cache for each sequence.
        tokens: The next token of each.
    """

    caches: list[list[Any]]
    tokens: list[int]


@dataclass(frozen=True)
class Answer:
    """How an answer went.

    Attributes:
        seconds: Of all that was timed.
        tokens: Of each sequence, in that time.
        accepted: Share of a draft model's proposals that were right.
    """

    seconds: float
    tokens: int
    accepted: float | None = None


@dataclass(frozen=True)
class Mode:
    """One way to generate.

    Attributes:
        name: As capsules call it.
        models: How many are at work.
        read: Called with models, prompts and tokens to process at a time; returns the
            seconds until the first token of each answer is known.
        begin: Likewise; returns where the answers begin.
        answer: Called with models, where to begin, and the tokens to generate after
            the first, which are timed, for each sequence.
    """

    name: str
    models: int
    read: Callable[[Models, Prompts, int], float]
    begin: Callable[[Models, Prompts, int], State]
    answer: Callable[[Models, State, int], Answer]


def plain() -> Mode:
    """One sequence, by mlx-lm's ``generate_step``."""

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
    """Several sequences at once, by mlx-lm's ``BatchGenerator``.

    All prompts are read together, so that reading and answering can be told apart.
    """

    def read(models: Models, prompts: Prompts, step_size: int) -> float:
        start = time.perf_counter()
        with _batch(models[0], len(prompts), 2, step_size) as generator:
            generator.insert([list(prompt) for prompt in prompts])
            generator.next_generated()
            return time.perf_counter() - start

    def answer(models: Models, state: State, tokens: int) -> Answer:
        count = len(state.tokens)
        # One more than is asked for: the last of a sequence has its cache cut out.
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
    """One sequence, by mlx-lm's ``speculative_generate_step``; two models."""

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
            # It ends in the middle of a round; this one at the end of one.
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
    """All of each prompt but its last token, in new caches of all models."""
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
    """Leave nothing of a generator computing: it is a token ahead of its reader."""
    try:
        yield
    finally:
        steps.close()
        mx.synchronize(lm.loops.generation_stream)
