"""Exact speculation: drafts change the speed and no bit of the result."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step, speculative_generate_step

import mlx_nibble
from tests.support import tiny_models

pytestmark = pytest.mark.slow


def model(
    family: str, noise: float = 0.0, layers: int = 3, mode: str = "affine"
) -> nn.Module:
    """Return an accelerated model; noise in its weights makes a draft model of it.

    A mode of floats comes with activations in bfloat16.
    """
    made = tiny_models.build(family)
    made.model.layers = made.model.layers[:layers]
    made.update(
        tree_map(
            lambda a: a + noise * mx.std(a) * mx.random.normal(a.shape),
            made.parameters(),
        )
    )
    if mode != "affine":
        made.set_dtype(mx.bfloat16)
    nn.quantize(made, 32, 4, mode=mode)
    mlx_nibble.accelerate(made, batch_invariant=True)
    return made


def prompt(length: int) -> mx.array:
    return mx.array([(7 * i * i + 5 * length) % 160 for i in range(length)])


def assert_exact(target: nn.Module, draft: nn.Module, length: int, count: int) -> float:
    """Return the rate of accepted drafts; tokens and log-probabilities must agree."""
    plain = generate_step(prompt(length), target, max_tokens=count)
    speculative = speculative_generate_step(
        prompt(length), target, draft, max_tokens=count, num_draft_tokens=3
    )
    drafted = 0
    for at, one in enumerate(plain):
        other = next(speculative)
        assert one[0] == other[0], f"token {at}"
        assert mx.array_equal(one[1], other[1]), f"log-probabilities of token {at}"
        drafted += other[2]
    assert at + 1 == count and next(speculative, None) is None
    return drafted / count


# Together 10,000 tokens. mlx-lm reads a prompt in steps of 2048 for one model and 512
# for the other, and the keys cross the borders of the ranges of threads.
@pytest.mark.parametrize("length", [1, 20, 127, 700, 1300])
def test_greedy_speculation_is_greedy_decoding_bit_for_bit(length):
    good = assert_exact(
        model("llama", layers=2), model("llama", 0.02, layers=2), length, 2000
    )
    assert 0.2 < good < 0.7  # drafts were often wrong and often right


def test_codes_that_are_floats():
    """Where few rows are faster as integers, they are none here."""
    target = model("llama", mode="mxfp4")
    assert_exact(target, model("llama", 0.02, mode="mxfp4"), 30, 200)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "phi3", "qwen3_moe"])
def test_other_families(family):
    assert_exact(model(family), model(family, 0.02), 30, 200)
