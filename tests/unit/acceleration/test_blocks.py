"""Recorded decoder blocks: one node a block, the bits of their code."""

import copy
import pickle
import threading
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cache as caches

import mlx_nibble
from mlx_nibble.lm.caches import CacheType, stored_as
from tests.support import tiny_models
from tests.support.blocks import (
    PROMPT,
    TOKENS,
    accelerated,
    assert_same,
    assert_same_caches,
    by_code,
    decode,
    nodes,
    prefilled,
    step,
)
from tests.support.graph import node_names


@pytest.mark.parametrize("repack", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma"])
def test_a_block_is_one_node_with_the_bits_of_its_code(family, repack):
    model, plain = accelerated(family, repack=repack), by_code(accelerated(family))
    cache, other = prefilled(model), prefilled(plain)
    assert nodes(step(model, cache)) == len(model.layers)
    step(plain, other)
    assert_same(decode(model, cache), decode(plain, other))
    assert_same_caches(cache, other)


@pytest.mark.parametrize("family", sorted({*tiny_models.FAMILIES} - {"llama"}))
def test_every_family_decodes_as_its_code_does(family):
    model, plain = accelerated(family), by_code(accelerated(family))
    assert_same(
        decode(model, prefilled(model), TOKENS * 4),
        decode(plain, prefilled(plain), TOKENS * 4),
    )


def test_a_model_of_30_layers_needs_at_most_70_nodes():
    model = accelerated(num_hidden_layers=30)
    cache = prefilled(model)
    y = step(model, cache)[:, -1, :]
    token = mx.argmax(y - mx.logsumexp(y, keepdims=True), axis=-1)
    assert sum(node_names(token).values()) <= 70


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_activations_of_16_bits(dtype):
    model, plain = accelerated(dtype=dtype), by_code(accelerated(dtype=dtype))
    cache, other = prefilled(model), prefilled(plain)
    for token in TOKENS:
        y, expected = step(model, cache, token), step(plain, other, token)
        assert nodes(y) == 3
        assert mx.array_equal(y, expected)


def test_a_cache_grows_and_is_trimmed():
    model, plain = accelerated(), by_code(accelerated())
    cache, other = prefilled(model), prefilled(plain)
    tokens = [i % 150 for i in range(caches.KVCache.step + 5)]
    assert_same(decode(model, cache, tokens), decode(plain, other, tokens))
    for c in (cache, other):
        assert caches.trim_prompt_cache(c, 20) == 20
    assert_same(decode(model, cache), decode(plain, other))
    assert_same_caches(cache, other)


def test_many_steps_may_wait_for_one_evaluation():
    model, plain = accelerated(), by_code(accelerated())
    cache, other = prefilled(model), prefilled(plain)
    ys = [step(model, cache, t) for t in TOKENS]
    mx.eval(ys)
    assert_same([np.array(y) for y in ys], decode(plain, other))
    assert_same_caches(cache, other)


def test_sequences_of_a_batch():
    prompt = mx.concatenate([PROMPT, PROMPT + 9])
    model, plain = accelerated(), by_code(accelerated())
    cache, other = prefilled(model, prompt), prefilled(plain, prompt)
    y = step(model, cache, batch=2)
    assert nodes(y) == 3
    assert mx.array_equal(y, step(plain, other, batch=2))


@pytest.mark.parametrize("pending", [True, False])
def test_a_copy_of_a_cache_keeps_its_values(pending):
    model = accelerated()
    cache = prefilled(model)
    y = step(model, cache)
    if not pending:
        mx.eval(y)
    kept = copy.deepcopy(cache)
    views = [c.keys[..., : c.offset + 3, :] for c in cache]
    before = [np.array(v) for v in views]
    first = decode(model, cache)
    assert_same(before, [np.array(v) for v in views])
    assert_same(first, decode(model, kept))


def test_a_cache_from_a_file(tmp_path):
    model = accelerated()
    cache = prefilled(model)
    mx.eval(step(model, cache))
    path = str(tmp_path / "cache.safetensors")
    caches.save_prompt_cache(path, cache)
    loaded: Any = caches.load_prompt_cache(path)
    assert_same(decode(model, cache), decode(model, loaded))


def test_a_cache_of_16_bits():
    kind = CacheType()
    kind.add(mx.bfloat16)
    model, plain = accelerated(), by_code(accelerated())
    with stored_as(kind):
        cache, other = prefilled(model), prefilled(plain)
        assert cache[0].keys.dtype == mx.bfloat16
        assert nodes(step(model, cache)) == 3
        step(plain, other)
        assert_same(decode(model, cache), decode(plain, other))
    assert_same_caches(cache, other)


def test_a_patched_cache_is_used(monkeypatch):
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    update, seen = caches.KVCache.update_and_fetch, []

    def patched(self, keys, values):
        seen.append(1)
        return update(self, keys, values)

    monkeypatch.setattr(caches.KVCache, "update_and_fetch", patched)
    decode(model, cache)
    assert len(seen) == len(TOKENS) * 3


def test_weights_are_read_at_each_call():
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    for change in (model, plain := by_code(accelerated())):
        for layer in change.layers:
            layer.mlp.down_proj.scales = 2 * layer.mlp.down_proj.scales
            layer.input_layernorm.weight = 1 + layer.input_layernorm.weight
        mx.eval(change.parameters())
    other = prefilled(plain)
    cache = prefilled(model)
    y = step(model, cache)
    assert nodes(y) == 3
    assert mx.array_equal(y, step(plain, other))


def test_arrays_that_were_evaluated_are_read_as_they_lie():
    model = accelerated()
    expected = decode(model, prefilled(model))
    mx.eval(model.parameters())
    assert_same(decode(model, prefilled(model)), expected)


def test_numbers_are_read_at_each_call():
    model, plain = accelerated(), by_code(accelerated())
    decode(model, prefilled(model))
    for m in (model, plain):
        m.layers[1].self_attn.scale *= 2
        m.layers[2].post_attention_layernorm.eps = 0.1
    assert_same(decode(model, prefilled(model)), decode(plain, prefilled(plain)))


class Spy(nn.Module):
    """A user's module around another."""

    def __init__(self, inner: nn.Module, seen: list):
        super().__init__()
        self.inner = inner
        self.see = seen.append

    def __call__(self, x: mx.array) -> mx.array:
        self.see(x.shape)
        return self.inner(x)


def test_the_code_of_a_users_module_runs_for_each_token():
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    seen: list = []
    model.layers[1].mlp = Spy(model.layers[1].mlp, seen)
    y = step(model, cache)
    assert nodes(y) == 2
    decode(model, cache)
    assert len(seen) == 1 + len(TOKENS)


@pytest.mark.parametrize("which", ["block", "mlp"])
def test_a_patched_method_runs_for_each_token(which, monkeypatch):
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    layer = model.layers[0]
    kind: Any = type(layer).__base__ if which == "block" else type(layer.mlp)
    method, seen = kind.__call__, []

    def patched(self, *args, **kwargs):
        seen.append(1)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", patched)
    decode(model, cache)
    assert len(seen) == len(TOKENS) * len(model.layers)


def test_code_that_needs_a_value_runs_for_each_token():
    model = accelerated("ministral3")
    plain = by_code(accelerated("ministral3"))
    tokens = TOKENS * 5  # beyond 16 positions its factors change
    assert_same(
        decode(model, prefilled(model), tokens), decode(plain, prefilled(plain), tokens)
    )


def test_transformations_see_the_operations():
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    x = mx.random.normal((1, 1, 64))
    layer = model.layers[0]

    def loss(x: mx.array) -> mx.array:
        return layer(x, None, cache=copy.deepcopy(cache[0])).sum()

    gradient = mx.grad(loss)(x)
    expected = mx.grad(loss)(x)
    assert mx.array_equal(gradient, expected)
    assert mx.abs(gradient).max() > 0
    compiled = mx.compile(lambda x: layer(x, None, cache=copy.deepcopy(cache[0])))
    y = layer(x, None, cache=copy.deepcopy(cache[0]))
    assert mx.allclose(compiled(x), y, rtol=1e-5, atol=1e-5)


def test_another_thread_decodes():
    model = accelerated()
    expected = decode(model, prefilled(model))
    found: list = []
    thread = threading.Thread(
        target=lambda: found.extend(decode(model, prefilled(model)))
    )
    thread.start()
    thread.join(60)
    assert_same(found, expected)


def test_undo_and_pickles_give_the_classes_back():
    model: Any = tiny_models.build("llama")
    nn.quantize(model, group_size=32, bits=4)
    kind = type(model.layers[0])
    report = mlx_nibble.accelerate(model, tuned=False)
    assert type(model.layers[0]) is not kind
    assert type(pickle.loads(pickle.dumps(model.layers[0]))) is kind
    report.undo()
    assert {type(layer) for layer in model.layers} == {kind}


def test_a_model_leaves_no_memory_behind():
    def made() -> None:
        model = accelerated()
        decode(model, prefilled(model))

    made()
    mx.clear_cache()
    before = mx.get_active_memory()
    made()
    mx.clear_cache()
    assert mx.get_active_memory() <= before
