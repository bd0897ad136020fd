"""Models whose layers are not those of a llama: on our kernels, with the same results."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import make_prompt_cache

import mlx_nibble
from tests.support import family_models
from tests.support.graph import node_names

# What each family's layers call, beyond what a llama's do.
CALLED = {
    "qwen3_next": {"gated_delta_ops", "conv1d", "silu", "linear"},
    "kimi_linear": {"gated_delta_ops", "conv1d", "silu"},
    "mamba": {"mamba"},
    "jamba": {"jamba"},
    "mamba2": {"ssm_attn", "conv1d", "silu"},
    "nemotron_h": {"ssm_attn"},
    "rwkv7": {"rwkv7", "layer_norm", "relu2"},
    "gpt2": {"layer_norm", "gelu_approx"},
    "gemma": {"gelu"},
    "gemma4_text": {"geglu"},
    "gpt_oss": {"swiglu_oai"},
    "olmo_hybrid": {"gated_delta_ops", "silu"},
}


def run(model):
    """Return the logits of a prompt, and of tokens after it."""
    cache = make_prompt_cache(model)
    prompt = family_models.tokens(length=12)[0]
    found = [model(prompt, cache=cache)]
    found += [model(prompt[:, i : i + 1], cache=cache)[:, -1:] for i in range(3)]
    logits = mx.concatenate(found, axis=1)
    mx.eval(logits)
    return logits


@pytest.mark.parametrize("family", CALLED)
def test_the_results_are_those_of_mlx(family):
    model = family_models.build(family)
    expected = run(model)
    report = mlx_nibble.accelerate(model)
    called = frozenset().union(*(r.operations for r in report.routed))
    assert CALLED[family] <= called
    found = run(model)
    scale = mx.abs(expected).max()
    assert (mx.abs(found - expected).max() / scale).item() < 2e-5
    report.undo()
    assert mx.array_equal(run(model), expected)


def test_a_recurrence_is_one_node():
    model = family_models.build("qwen3_next")
    mlx_nibble.accelerate(model)
    names = node_names(model(family_models.tokens(length=12)[0]))
    assert names["NibbleRecurrence"] == 2  # of four layers
    assert "NibbleConvolution" in names and "Convolution" not in names


def test_padded_batches_of_a_recurrent_model():
    """A sequence with padding on its left has the results that it has alone."""
    from mlx_lm.models.cache import ArraysCache

    model = family_models.build("mamba2")
    mlx_nibble.accelerate(model)
    tokens = family_models.tokens(length=9)[0]
    alone = model(tokens, cache=make_prompt_cache(model))[:, -1]
    padded = mx.concatenate([mx.zeros((1, 3), tokens.dtype), tokens], axis=1)
    cache = [
        ArraysCache(len(c.cache), left_padding=[3])
        for c in make_prompt_cache(model)
    ]
    found = model(padded, cache=cache)[:, -1]
    assert mx.allclose(found, alone, rtol=1e-4, atol=1e-5)
