"""Models with layers that a llama has not: on our kernels, with the same results."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import ArraysCache, QuantizedKVCache, make_prompt_cache

import mlx_nibble
from mlx_nibble.acceleration import stand_ins
from tests.support import family_models, tiny_models
from tests.support.arrays import to_numpy
from tests.support.graph import node_names
from tests.support.tolerance import relative_rms

# Operations of each family's layers that a llama has not.
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
    "gemma2": {"capped_attention", "gelu_approx", "tanh"},
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


def test_capped_attention_is_one_node():
    model = family_models.build("gemma2")
    mlx_nibble.accelerate(model)
    names = node_names(model(family_models.tokens(length=12)[0]))
    assert names["NibbleAttention"] == len(model.layers)
    assert not {"Softmax", "Matmul", "Tanh"} & names.keys()


class Dequantizing(QuantizedKVCache):
    """A quantized cache that MLX's code of Gemma 2 can read."""

    def update_and_fetch(self, keys, values):
        stored = super().update_and_fetch(keys, values)
        form = {"group_size": self.group_size, "bits": self.bits}
        return [mx.dequantize(*arrays, **form) for arrays in stored]


@pytest.mark.parametrize("bits", [8, 4])
def test_capped_attention_over_a_quantized_cache(bits):
    model = tiny_models.build("gemma2", head_dim=32)
    tokens = tiny_models.tokens(1, 12)[0]
    caches = [
        [kind(32, bits) for _ in model.layers]
        for kind in (Dequantizing, QuantizedKVCache)
    ]
    expected = model(tokens, cache=caches[0])
    mlx_nibble.accelerate(model)
    found = model(tokens, cache=caches[1])
    # A key that lies between two codes may become the other one.
    assert relative_rms(to_numpy(found), to_numpy(expected)) < 1e-3


def test_experts_that_are_not_quantized_are_ours():
    model = family_models.build("qwen3_moe")
    mlx_nibble.accelerate(model)
    names = node_names(model(family_models.tokens(length=12)[0]))
    assert names["NibbleGatherMM"] > 0 and "GatherMM" not in names


def test_heads_with_a_matrix_each_are_ours():
    model = family_models.build("deepseek_v3")
    expected = run(model)
    mlx_nibble.accelerate(model)
    names = node_names(model(family_models.tokens(length=1)[0]))
    assert names["NibbleGatherMM"] > 0
    assert mx.allclose(run(model), expected, rtol=1e-4, atol=1e-4)


def test_what_stays_with_mlx_is_in_the_report():
    model = family_models.build("deepseek")
    report = mlx_nibble.accelerate(model)
    left = {(part.kind, part.operation) for part in report.left}
    assert left == {("MoEGate", "@"), ("MoEGate", "softmax")}
    assert " MoEGate leave softmax to MLX: no kernel" in str(report)
    report.undo()
    assert not report.left


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_report_of_what_is_ours_names_no_operation(family):
    assert not mlx_nibble.accelerate(family_models.build(family)).left


def test_convolutions_that_are_not_depthwise_are_in_the_report():
    model = nn.Sequential(
        nn.Conv1d(4, 4, 3, groups=4), nn.Conv1d(4, 8, 3), nn.Conv2d(4, 4, 3)
    )
    report = mlx_nibble.accelerate(model)
    left = [(part.path, part.operation) for part in report.left]
    assert sorted(left) == [("layers.1", "conv1d"), ("layers.2", "conv2d")]


def test_a_recurrence_is_one_node():
    model = family_models.build("qwen3_next")
    mlx_nibble.accelerate(model)
    names = node_names(model(family_models.tokens(length=12)[0]))
    assert names["NibbleRecurrence"] == 2  # of four layers
    assert "NibbleConvolution" in names and "Convolution" not in names


def test_padded_batches_of_a_recurrent_model():
    """A sequence with padding on its left has the results that it has alone."""
    model = family_models.build("mamba2")
    mlx_nibble.accelerate(model)
    tokens = family_models.tokens(length=9)[0]
    alone = model(tokens, cache=make_prompt_cache(model))[:, -1]
    padded = mx.concatenate([mx.zeros((1, 3), tokens.dtype), tokens], axis=1)
    cache = [
        ArraysCache(len(c.cache), left_padding=[3]) for c in make_prompt_cache(model)
    ]
    found = model(padded, cache=cache)[:, -1]
    assert mx.allclose(found, alone, rtol=1e-4, atol=1e-5)


def plain_attention(q, k, v, scale, mask):
    """Return attention as whisper's layers write it, heads split."""
    scores = (q @ k.swapaxes(-1, -2)) * scale + mask
    out = mx.softmax(scores, axis=-1) @ v
    return out.transpose(0, 2, 1, 3).flatten(2), scores


def test_attention_of_whisper_and_its_scores():
    q, k, v = (mx.random.normal((2, n, 32)) for n in (5, 5, 5))
    mask = mx.triu(mx.full((9, 9), -1e9), 1)
    layer = SimpleNamespace(n_head=4)
    found = stand_ins.whisper_attention(layer, q, k, v, mask)
    heads = [a.reshape(2, 5, 4, 8).transpose(0, 2, 1, 3) for a in (q, k, v)]
    expected = plain_attention(*heads, 8**-0.5, mask[:5, :5])
    for ours, theirs in zip(found, expected, strict=True):
        assert mx.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_of_bert():
    class Layer(nn.Module):
        attention_head_size = 8
        query, key, value = (nn.Linear(32, 32) for _ in range(3))

        def transpose_for_scores(self, x):
            return x.reshape(*x.shape[:2], 4, 8).transpose(0, 2, 1, 3)

    layer, x = Layer(), mx.random.normal((2, 5, 32))
    layer.eval()
    mask = mx.where(mx.arange(5) < mx.array([[3], [5]]), 0.0, -1e9)[:, None, None]
    heads = [
        layer.transpose_for_scores(part(x))
        for part in (layer.query, layer.key, layer.value)
    ]
    found = stand_ins.bert_attention(layer, x, mask)
    expected = plain_attention(*heads, 8**-0.5, mask)[0]
    assert mx.allclose(found, expected, rtol=1e-4, atol=1e-5)
