"""Routing: whole mlx-lm models on our CPU operations, and back."""

import importlib

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.generate import BatchGenerator
from mlx_lm.models.cache import make_prompt_cache

import mlx_nibble
from mlx_nibble import _native
from tests.support.arrays import to_numpy
from tests.support.graph import node_names
from tests.support.tolerance import relative_rms

COMMON = dict(
    hidden_size=48,
    num_hidden_layers=2,
    intermediate_size=80,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-5,
    vocab_size=97,
    max_position_embeddings=512,
)
LLAMA3 = dict(rope_type="llama3", factor=4.0, original_max_position_embeddings=64)
LONGROPE = dict(
    type="longrope",
    original_max_position_embeddings=64,
    short_factor=1.0,
    long_factor=2.0,
)
MODELS = {
    "llama": dict(rope_scaling=LLAMA3),
    "llama traditional": dict(rope_traditional=True),
    "llama yarn": dict(rope_scaling=dict(type="yarn", factor=4.0)),
    "llama longrope": dict(rope_scaling=LONGROPE),
    "qwen3": dict(rope_theta=1e6, tie_word_embeddings=True),
    "gemma3_text": dict(sliding_window=8, sliding_window_pattern=2),
}
IDS = mx.array([[(7 * i * i + 3) % 97 for i in range(21)] for _ in range(2)])


def tiny(name: str, dtype: mx.Dtype = mx.float32) -> nn.Module:
    """Return a model with random weights that depend on its name only."""
    module = importlib.import_module(f"mlx_lm.models.{name.split()[0]}")
    config = COMMON | MODELS[name] | {"model_type": name.split()[0]}
    args = module.ModelArgs.from_dict(config)
    mx.random.seed(1)
    model = module.Model(args)
    mx.eval(model.parameters())
    model.set_dtype(dtype)
    return model


def in_steps(model: nn.Module, ids: mx.array, sizes=(9, 1, 4, 1, 1), **kwargs):
    """Return logits with a prompt cache, the prompt cut into steps."""
    cache = make_prompt_cache(model, **kwargs)
    at, parts = 0, []
    for size in (*sizes, ids.shape[1] - sum(sizes)):
        parts.append(model(ids[:, at : at + size], cache=cache))
        at += size
    return mx.concatenate(parts, axis=1)


def by_class(model):
    return [type(m) for _, m in model.named_modules()]


def assert_no_worse(ours, stock, exact):
    """Allow twice the error that MLX's own float32 has against float64."""
    ours, stock, exact = (to_numpy(a) for a in (ours, stock, exact))
    assert relative_rms(ours, exact) <= 2 * relative_rms(stock, exact)


@pytest.mark.parametrize("name", MODELS)
def test_logits_with_and_without_a_cache(name):
    model, reference = tiny(name), tiny(name, mx.float64)
    runs = {
        "whole": lambda m: m(IDS),
        "steps": lambda m: in_steps(m, IDS),
        "rotating": lambda m: in_steps(m, IDS, max_kv_size=8),
    }
    stock = {key: run(model) for key, run in runs.items()}
    mx.eval(stock)
    report = mlx_nibble.accelerate(model)
    used = set().union(*(r.operations for r in report.routed))
    assert {"rms_norm", "rope", "scaled_dot_product_attention"} <= used
    for key, run in runs.items():
        assert_no_worse(run(model), stock[key], run(reference))


@pytest.mark.parametrize("name", MODELS)
def test_undo_restores_the_model_exactly(name):
    model = tiny(name)
    before, classes = model(IDS), by_class(model)
    mx.eval(before)
    report = mlx_nibble.accelerate(model)
    assert by_class(model) != classes
    assert not mx.array_equal(model(IDS), before)  # this shows that it was routed
    assert all(isinstance(r.module, r.original) for r in report.routed)
    report.undo()
    assert by_class(model) == classes
    assert mx.array_equal(model(IDS), before)
    assert not report.routed


def test_other_models_of_the_same_classes_go_on_as_before():
    one, other = tiny("llama"), tiny("llama")
    before = other(IDS)
    mx.eval(before)
    mlx_nibble.accelerate(one)
    assert mx.array_equal(other(IDS), before)


def test_the_report_names_what_was_routed():
    report = mlx_nibble.accelerate(tiny("llama"))
    text = str(report)
    both = "quantized_scaled_dot_product_attention, scaled_dot_product_attention"
    assert f"2 Attention on our CPU {both}" in text
    assert "2 MLP on our CPU swiglu" in text
    assert "5 RMSNorm on our CPU rms_norm" in text
    assert "2 Llama3RoPE on our CPU rope" in text


def test_twice_is_once():
    model = tiny("qwen3")
    mlx_nibble.accelerate(model)
    assert not mlx_nibble.accelerate(model).routed


@pytest.mark.parametrize("bits", [4, 8])
def test_attention_over_a_quantized_cache_is_one_node(bits):
    model = tiny("llama")

    def run():
        cache = [c.to_quantized(32, bits) for c in make_prompt_cache(model)]
        prompt = model(IDS[:, :8], cache=cache)
        return prompt, model(IDS[:, 8:9], cache=cache)

    stock = run()
    mx.eval(stock)
    report = mlx_nibble.accelerate(model)
    ours = run()
    # A prompt of two layers. The token's are within its recorded blocks.
    assert node_names(ours[0])["NibbleAttention"] == 2
    assert node_names(*ours)["Softmax"] == 0
    for a, b in zip(ours, stock, strict=True):
        assert relative_rms(to_numpy(a), to_numpy(b)) < 1e-3
    report.undo()
    again = run()
    assert node_names(*again)["NibbleAttention"] == 0
    assert all(mx.array_equal(a, b) for a, b in zip(again, stock, strict=True))


def greedy(model, prompts, count=6):
    generator = BatchGenerator(model, stop_tokens=[])
    uids = generator.insert(prompts, [count] * len(prompts))
    tokens = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for r in responses:
            tokens[r.uid].append(r.token)
    generator.close()
    return [tokens[uid] for uid in uids]


def test_batched_generation_with_padding():
    model = tiny("llama")
    prompts = [[1, 2, 3, 4, 5, 6, 7], [9, 8], [5, 5, 5, 5]]
    stock = greedy(model, prompts)
    mlx_nibble.accelerate(model)
    assert greedy(model, prompts) == stock


def test_gradients_of_a_routed_model():
    model = tiny("llama")

    def loss(model):
        return nn.losses.cross_entropy(model(IDS[:, :-1]), IDS[:, 1:]).mean()

    def gradient():
        return nn.value_and_grad(model, loss)(model)[1]["model"]["layers"][0]

    stock = gradient()
    mlx_nibble.accelerate(model)
    ours = gradient()
    for part in ("self_attn", "mlp"):
        for name, layer in stock[part].items():
            if isinstance(layer, dict) and "weight" in layer:
                ours_here = to_numpy(ours[part][name]["weight"])
                assert relative_rms(ours_here, to_numpy(layer["weight"])) < 1e-4


def test_a_method_of_a_base_class_that_is_overridden_stays_hidden():
    class Base(nn.Module):
        def __call__(self, x):
            return mx.fast.rms_norm(x, None, 1e-5)

    class Own(Base):
        def __call__(self, x):
            return 2 * x

    layer = Own()
    assert not mlx_nibble.accelerate(layer).routed
    assert layer(1) == 2


def test_an_inactive_package_routes_nothing(monkeypatch):
    monkeypatch.setattr(_native, "ext", None)
    monkeypatch.setattr(_native, "reason", "because")
    assert not mlx_nibble.accelerate(tiny("llama")).routed
