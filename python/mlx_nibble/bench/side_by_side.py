"""Compares models by one greedy generation: speed, memory, tokens and logits.

The models take turns, so that a busy moment of the machine affects all of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nibble import lm
from mlx_nibble.acceleration.rebind import original
from mlx_nibble.bench.rates import ModelCase
from mlx_nibble.bench.statistics import Estimate, spread
from mlx_nibble.bench.subject import weight_bytes
from mlx_nibble.evaluation.reference import llama_logits
from mlx_nibble.machine.turns import take_pass
from mlx_nibble.progress import Progress, silent

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
        prompt_rate: Prompt tokens per second, up to the first new token.
        decode_rate: Tokens per second after the first.
        working_bytes: Peak memory beyond the memory in use before (the weights).
        tokens: Generated tokens.
    """

    prompt_rate: float
    decode_rate: float
    working_bytes: int
    tokens: tuple[int, ...]


def generate(
    model: nn.Module,
    prompt: Sequence[int],
    tokens: int,
    kv_bits: int | None = None,
    cache: list[Any] | None = None,
) -> Generation:
    """Time mlx-lm's generation loop, or our export of it for an accelerated model.

    Args:
        model: An mlx-lm model.
        prompt: At least one token id.
        tokens: Number of tokens to generate, at least 2; end of text does not stop it.
        kv_bits: Width of a quantized KV cache; None: it is not quantized.
        cache: KV cache of the text before the prompt, which the run fills. Default: a
            new one.
    """
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    start = time.perf_counter()
    accelerated = any(original(type(m)) is not type(m) for m in model.modules())
    generate_step = lm.generate_step if accelerated else lm.loops.generate_step
    options = {"kv_bits": kv_bits, "prompt_cache": cache}
    steps = generate_step(mx.array(list(prompt)), model, max_tokens=tokens, **options)
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


@dataclass
class _Turns:
    """The generations of one model, as a candidate of :mod:`schedule`."""

    run: Callable[[], Generation]
    before: Callable[[], None]
    seconds: float
    runs: list[Generation] = field(default_factory=list)
    passes: list[list[float]] = field(default_factory=list)

    def sample(self) -> float:
        self.before()
        start = time.perf_counter()
        self.runs.append(self.run())
        self.seconds = time.perf_counter() - start
        return self.seconds


def generate_in_turns(
    models: Mapping[str, nn.Module],
    prompt: Sequence[int],
    tokens: int,
    rounds: int,
    progress: Progress = silent,
) -> dict[str, list[Generation]]:
    """Time several models in turns.

    Args:
        models: Models by name.
        prompt: Token ids.
        tokens: Number of tokens to generate in each run.
        rounds: Runs of each model, after a short run to warm up.
        progress: Called before each run, with the seconds spent and all seconds.

    Returns:
        The `rounds` results of each model, by name.
    """
    turns: dict[str, _Turns] = {}
    begin = time.perf_counter()

    def report(name: str) -> None:
        done = time.perf_counter() - begin
        left = sum((rounds - len(turn.runs)) * turn.seconds for turn in turns.values())
        progress(name, done, done + left)

    for name, model in models.items():
        progress(name, 0, math.inf)
        start = time.perf_counter()
        generate(model, prompt[:_WARM_UP_TOKENS], 2)
        # In a model that is slow enough to matter, all tokens take the same time.
        per_token = (time.perf_counter() - start) / (_WARM_UP_TOKENS + 2)
        turns[name] = _Turns(
            lambda model=model: generate(model, prompt, tokens),
            lambda name=name: report(name),
            per_token * (len(prompt) + tokens),
        )
    for _ in range(rounds):
        take_pass(turns, 0)
    return {name: turn.runs for name, turn in turns.items()}


def compare(
    folder: str,
    models: Mapping[str, nn.Module],
    text: Sequence[int],
    decode_tokens: int,
    rounds: int,
    logits_tokens: int,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[float] | None]:
    """Compare models in speed, memory and error.

    Args:
        folder: Folder that the models were loaded from.
        models: Models by name.
        text: Token ids of the prompt.
        decode_tokens: Number of tokens to generate after it.
        rounds: Timed runs of each model.
        logits_tokens: Number of tokens of `text` to compare logits on.
        progress: Called with the next step, the seconds spent and all seconds.

    Returns:
        The results of a capsule, for prompt and decode, and the least and the largest
        logit. Each model has its bytes and its tokens. For a llama it also has the
        largest difference of its logits from :func:`llama_logits`.
    """
    runs = generate_in_turns(
        models,
        text,
        decode_tokens,
        rounds,
        lambda name, *seconds: progress(f"Comparing speed: {name}", *seconds),
    )
    progress("Comparing logits with the dequantized model in float64", 0, math.inf)
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
            "case": asdict(ModelCase.alone(measure, len(text))),
            "candidates": candidates,
        }
        for measure, candidates in (("prompt", prompts), ("decode", answers))
    ]
    extremes = None if exact is None else [float(exact.min()), float(exact.max())]
    return results, extremes


def tokens_per_second(candidate: Mapping[str, Any]) -> Estimate:
    """Return the median and the range of a candidate's rates.

    Args:
        candidate: Candidate of a capsule; its samples are seconds of one token.
    """
    return spread([1 / s for taken in candidate["passes"] for s in taken])


def logits(model: nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """Return the logits of a text, float32 ``[len(tokens), vocabulary]``."""
    return np.array(model(mx.array(list(tokens))[None])[0].astype(mx.float32))
