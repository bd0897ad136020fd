"""The samplers and processors of logits of one request."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_nibble.lm.serving.flight import Sampler


def make_sampler(make: Callable[..., Any], args: Any, tokenizer: Any) -> Any:
    """Return a request's sampler; ``make`` is mlx-lm's function for it."""
    sample = make(args, tokenizer)
    if args.sampling.temperature > 0 and "MLX_DISABLE_COMPILE" not in os.environ:
        sample = _uncompiled(sample)
    flight = getattr(args, "flight", None)
    return sample if flight is None else flight.sampler(sample)


def make_processors(make: Callable[..., Any], args: Any) -> list[Any]:
    """Return a request's processors; ``make`` is mlx-lm's function for them."""
    made = make(args)
    if (constraint := getattr(args, "constraint", None)) is not None:
        made.append(constraint)  # the last: no bias brings a token back
    flight = getattr(args, "flight", None)
    return made if flight is None else [*map(flight.processor, made)]


def _uncompiled(sample: Sampler) -> Sampler:
    """Return a sampler that MLX does not compile.

    mlx-lm compiles its samplers, and numbers are constants of compiled code. So each
    new temperature would cost a run of the C++ compiler, for which every client waits,
    and memory that is never freed.
    """

    def run(logprobs: mx.array) -> mx.array:
        mx.disable_compile()
        try:
            return sample(logprobs)
        finally:
            mx.enable_compile()

    return run
