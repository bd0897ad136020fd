"""Decoder blocks that are replayed, their code, and caches to compare."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models import cache as caches

import mlx_nibble
from tests.support import tiny_models
from tests.support.graph import node_names

PROMPT = mx.arange(1, 6)[None]
TOKENS = [int(t) for t in (7, 30, 101, 7, 55)]


def accelerated(
    family: str = "llama",
    repack: bool = True,
    dtype: mx.Dtype = mx.float32,
    **changes,
) -> Any:
    model = tiny_models.build(family, **changes)
    model.set_dtype(dtype)
    nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    mlx_nibble.accelerate(model, tuned=False, repack=repack)
    return model


def prefilled(model: Any, prompt: mx.array = PROMPT) -> list:
    cache = caches.make_prompt_cache(model)
    mx.eval(model(prompt, cache=cache))
    return cache


def step(model: Any, cache: list, token: int = 7, batch: int = 1) -> mx.array:
    return model(mx.full((batch, 1), token), cache=cache)


def decode(model: Any, cache: list, tokens=TOKENS) -> list[np.ndarray]:
    return [np.array(step(model, cache, t)) for t in tokens]


def nodes(y: mx.array) -> int:
    return node_names(y)["NibbleStep"]


def assert_same(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_same_caches(a: list, b: list) -> None:
    for one, other in zip(a, b, strict=True):
        assert one.offset == other.offset
        for name in ("keys", "values"):
            used = [getattr(c, name)[..., : c.offset, :] for c in (one, other)]
            assert mx.array_equal(*used)


def replaying(model: Any) -> list[Any]:
    """Return the blocks of a model that are recorded."""
    return [m for m in model.modules() if hasattr(type(m), "_steps")]


def by_code(model: Any) -> Any:
    """Let the code of all blocks run for each token."""
    for block in replaying(model):
        block.__class__ = type(block).__base__
    return model
