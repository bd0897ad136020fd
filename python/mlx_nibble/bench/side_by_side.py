"""Measure models against each other, in one run.

Runs are interleaved, so that a machine that is busy for a while is so for all,
and reported as medians with their spread.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_nibble import lm
from mlx_nibble.acceleration.rebind import original
from mlx_nibble.bench.rates import Case
from mlx_nibble.evaluation.reference import llama_logits

_WARM_UP_TOKENS = 8

# Herman Melville, Moby-Dick (1851), public domain.
TEXT = """Call me Ishmael. Some years ago—never mind how long precisely—having \
little or no money in my purse, and nothing particular to interest me on shore, I \
thought I would sail about a little and see the watery part of the world. It is a \
way I have of driving off the spleen and regulating the circulation. Whenever I find \
myself growing grim about the mouth; whenever it is a damp, drizzly November in my \
soul; whenever I find myself involuntarily pausing before coffin warehouses, and \
bringing up the rear of every funeral I meet; and especially whenever my hypos get \
such an upper hand of me, that it requires a strong moral principle to prevent me \
from deliberately stepping into the street, and methodically knocking people's hats \
off—then, I account it high time to get to sea as soon as I can."""


@dataclass(frozen=True)
class Generation:
    """One timed greedy generation.

    Attributes:
        prompt_rate: Prompt tokens a second, until the first token is known.
        decode_rate: Tokens a second after the first.
        working_bytes: Most memory in use, beyond what was before (the weights).
        tokens: The tokens generated.
    """

    prompt_rate: float
    decode_rate: float
    working_bytes: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Summary:
    """Several values of one quantity: the middle one, and how far they spread."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summarize at least one value."""
        return cls(statistics.median(values), min(values), max(values))


def generate(model: nn.Module, prompt: Sequence[int], tokens: int) -> Generation:
    """Time mlx-lm's own generation loop; of an accelerated model, as we export it.

    Args:
        model: An mlx-lm model.
        prompt: At least one token id.
        tokens: How many to generate, at least 2; an end of text does not stop it.
    """
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    start = time.perf_counter()
    generate_step = (
        lm.generate_step if _is_accelerated(model) else lm.loops.generate_step
    )
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=tokens)
    generated = [int(next(steps)[0])]
    first = time.perf_counter()
    generated += [int(token) for token, _ in steps]
    end = time.perf_counter()
    return Generation(
        prompt_rate=len(prompt) / (first - start),
        decode_rate=(tokens - 1) / (end - first),
        working_bytes=mx.get_peak_memory() - before,
        tokens=tuple(generated),
    )


def _is_accelerated(model: nn.Module) -> bool:
    return any(original(type(m)) is not type(m) for m in model.modules())


def interleave(
    models: Mapping[str, nn.Module],
    prompt: Sequence[int],
    tokens: int,
    rounds: int,
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, list[Generation]]:
    """Time several models in turns: A B A B …

    Args:
        models: Name to model.
        prompt: Token ids.
        tokens: How many to generate in each run.
        rounds: Runs of each model, after a short one to warm up.
        progress: Called before each run with the model's name and an estimate of
            the seconds until all is done.

    Returns:
        Name to ``rounds`` results.
    """
    progress = progress or (lambda name, seconds: None)
    cost = {}
    for name, model in models.items():
        progress(name, math.inf)
        start = time.perf_counter()
        generate(model, prompt[:_WARM_UP_TOKENS], 2)
        # Slow enough to matter means bound by tokens, prompt or not.
        per_token = (time.perf_counter() - start) / (_WARM_UP_TOKENS + 2)
        cost[name] = per_token * (len(prompt) + tokens)
    results: dict[str, list[Generation]] = {name: [] for name in models}
    for done in range(rounds):
        for name, model in models.items():
            left = (rounds - done) * sum(cost.values())
            left -= sum(cost[n] for n in models if len(results[n]) > done)
            progress(name, left)
            start = time.perf_counter()
            results[name].append(generate(model, prompt, tokens))
            cost[name] = time.perf_counter() - start
    return results


def compare(
    folder: str,
    models: Mapping[str, nn.Module],
    text: Sequence[int],
    decode_tokens: int,
    rounds: int,
    logits_tokens: int,
    progress: Callable[[str, float], None],
) -> tuple[list[dict[str, Any]], list[float] | None]:
    """Compare models in speed, memory and error.

    Args:
        folder: What the models were loaded from.
        models: Name to model.
        text: Token ids: the prompt.
        decode_tokens: How many to generate after it.
        rounds: Timed runs of each model.
        logits_tokens: How many of ``text`` to compare logits on.
        progress: Called with what is done next, and the seconds left.

    Returns:
        A capsule's results, reading the prompt and answering, with each model's bytes,
        answer and, for a llama, the largest difference of logits from
        :func:`llama_logits`; and of these the least and the largest.
    """
    runs = interleave(
        models,
        text,
        decode_tokens,
        rounds,
        lambda name, seconds: progress(f"Comparing speed: {name}", seconds),
    )
    progress("Comparing logits with the dequantized model in float64", math.inf)
    short = text[:logits_tokens]
    exact = llama_logits(Path(folder), short)
    prompts: dict[str, dict[str, Any]] = {}
    answers: dict[str, dict[str, Any]] = {}
    for name, model in models.items():
        prompts[name] = {
            "chain": len(text),
            "passes": [[1 / run.prompt_rate] for run in runs[name]],
            "weight_bytes": weight_bytes(model),
            "working_bytes": max(run.working_bytes for run in runs[name]),
        }
        answers[name] = {
            "chain": decode_tokens - 1,
            "passes": [[1 / run.decode_rate] for run in runs[name]],
            "tokens": list(runs[name][0].tokens),
        }
        if exact is not None:
            off = abs(logits(model, short) - exact).max()
            prompts[name]["largest_logit_difference"] = float(off)
    results = [
        {
            "case": asdict(Case.alone(measure, len(text))),
            "candidates": candidates,
        }
        for measure, candidates in (("prompt", prompts), ("decode", answers))
    ]
    extremes = None if exact is None else [float(exact.min()), float(exact.max())]
    return results, extremes


def tokens_per_second(candidate: Mapping[str, Any]) -> Summary:
    """Of a capsule's candidate, whose samples are seconds of a token."""
    return Summary.of([1 / s for taken in candidate["passes"] for s in taken])


def logits(model: nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """The model's logits for a text, float32 ``[len(tokens), vocabulary]``."""
    return np.array(model(mx.array(list(tokens))[None])[0].astype(mx.float32))


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters."""
    parameters = dict(tree_flatten(model.parameters()))
    return sum(array.nbytes for array in parameters.values())
