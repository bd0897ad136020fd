"""Recorded blocks: what may change between two tokens, and code of users."""

import copy
import random
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import cache as caches
from mlx_lm.models import plamo3

from mlx_nibble.acceleration.reach import Reach, Untrusted
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


def test_an_array_that_had_two_names_is_replaced_under_one():
    model, plain = accelerated("qwen3"), by_code(accelerated("qwen3"))
    attention = [m.layers[0].self_attn for m in (model, plain)]
    for a in attention:
        a.q_norm.weight = a.k_norm.weight
    assert_same(decode(model, prefilled(model)), decode(plain, prefilled(plain)))
    assert nodes(step(model, prefilled(model))) == 3
    for a in attention:
        a.q_norm.weight = 2 * a.k_norm.weight
        mx.eval(a.q_norm.weight)
    assert_same(decode(model, prefilled(model)), decode(plain, prefilled(plain)))
    assert nodes(step(model, prefilled(model))) == 3


@pytest.mark.parametrize("wrap", ["function", "object"])
def test_what_a_user_puts_in_the_place_of_a_module_sees_each_token(wrap):
    model = accelerated()
    decode(model, prefilled(model))
    inner, seen = model.layers[1].mlp, []

    class Wrapper:
        def __call__(self, x: mx.array) -> mx.array:
            seen.append(x)
            return inner(x)

    wrapper = Wrapper()
    model.layers[1].mlp = wrapper if wrap == "object" else lambda x: wrapper(x)
    cache = prefilled(model)
    seen.clear()
    decode(model, cache)
    assert len(seen) == len(TOKENS)
    mx.eval(seen)  # no array without a value is among them


def test_a_function_in_an_unread_attribute_of_a_layer():
    model = accelerated()
    model.layers[1].mlp.note = lambda: None
    assert nodes(step(model, prefilled(model))) == 2


def test_code_reads_a_patched_function(monkeypatch):
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    call: Any = type(model.layers[0].self_attn).__call__
    space = call.__globals__
    name, seen = "scaled_dot_product_attention", []
    attention = space[name]

    def spy(*args, **kwargs):
        seen.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setitem(space, name, spy)
    decode(model, cache)
    assert len(seen) == 3 * len(TOKENS)


class Caller:
    """An object that a user puts in the place of a function."""

    def __init__(self, function: Any, seen: list):
        self.function, self.see = function, seen.append

    def __call__(self, *args, **kwargs):
        self.see(1)
        return self.function(*args, **kwargs)


@pytest.mark.parametrize("decoded", [0, 1])
def test_an_object_in_the_place_of_a_function_sees_each_token(decoded, monkeypatch):
    model = accelerated()
    decode(model, prefilled(model), TOKENS[:decoded])
    call: Any = type(model.layers[0].self_attn).__call__
    space = call.__globals__
    name, seen = "scaled_dot_product_attention", []
    monkeypatch.setitem(space, name, Caller(space[name], seen))
    cache = prefilled(model)
    seen.clear()
    decode(model, cache)
    assert len(seen) == 3 * len(TOKENS)


def test_a_subclass_of_a_cache_is_used():
    model = accelerated()
    decode(model, prefilled(model))
    seen = []

    class Cache(caches.KVCache):
        def keys_and_values(self):
            seen.append(1)
            return super().keys_and_values()

    cache = [Cache() for _ in model.layers]
    mx.eval(model(PROMPT, cache=cache))
    seen.clear()
    decode(model, cache)
    assert len(seen) == 3 * len(TOKENS)


def test_a_patched_helper_of_the_cache_is_used(monkeypatch):
    model = accelerated()
    cache = prefilled(model)
    decode(model, cache)
    fetch, seen = caches.KVCache.keys_and_values, []

    def patched(self):
        seen.append(1)
        return fetch(self)

    monkeypatch.setattr(caches.KVCache, "keys_and_values", patched)
    decode(model, cache)
    assert len(seen) == 3 * len(TOKENS)


@pytest.mark.parametrize(
    "cache", [(mx.ones(2),), [None], object(), {}, 5], ids=lambda c: type(c).__name__
)
def test_another_cache_fails_as_it_does_in_the_code(cache):
    layer: Any = accelerated().layers[0]
    kind: Any = type(layer).__base__
    x = mx.ones((1, 1, 64))
    with pytest.raises(AttributeError) as expected:
        kind.__call__(layer, x, None, cache=cache)
    with pytest.raises(AttributeError) as found:
        layer(x, None, cache=cache)
    assert str(found.value) == str(expected.value)


def test_code_that_keeps_what_it_computed_is_not_recorded():
    with pytest.raises(Untrusted):
        Reach(plamo3.RMSNorm, "__call__", ("mlx_lm.", "mlx.nn."))
    assert Reach(nn.RMSNorm, "__call__", ("mlx.nn.",)).members


def test_arguments_that_code_reads_may_change():
    model, plain = accelerated(), by_code(accelerated())
    for m in (model, plain):
        m.layers[0].self_attn.args = SimpleNamespace()  # an object of a user
    assert nodes(step(model, prefilled(model))) == 2
    assert_same(decode(model, prefilled(model)), decode(plain, prefilled(plain)))


def test_the_latest_of_many_states_are_recorded():
    model = accelerated(num_hidden_layers=1)
    cache = prefilled(model)
    for number in range(260):  # more than are kept
        model.layers[0].number = number
        y = step(model, cache)
        assert nodes(y) == 1
        mx.eval(y)
        caches.trim_prompt_cache(cache, 1)


def test_a_block_at_the_address_of_another_is_recorded():
    for _ in range(10):
        model = accelerated(num_hidden_layers=1)
        model.layers[0].mlp.note = object()
        decode(model, prefilled(model), TOKENS[:1])
        del model
    model = accelerated(num_hidden_layers=1)
    assert nodes(step(model, prefilled(model))) == 1


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_a_block_whose_code_runs_before_a_recorded_one(dtype):
    model, plain = accelerated(dtype=dtype), by_code(accelerated(dtype=dtype))
    model.layers[0].__class__ = type(model.layers[0]).__base__
    cache, other = prefilled(model), prefilled(plain)
    for token in TOKENS * 4:
        y, expected = step(model, cache, token), step(plain, other, token)
        assert nodes(y) == 2
        assert mx.array_equal(y, expected)


@pytest.mark.parametrize("seed", range(4))
def test_forks_views_and_streams_keep_their_values(seed):
    model, plain = accelerated(), by_code(accelerated())
    streams = [mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)]
    choose = random.Random(seed)
    forks = [(prefilled(model), prefilled(plain))]
    found, expected = [], []
    for _ in range(60):
        cache, other = choose.choice(forks)
        token = choose.randrange(150)
        with mx.stream(choose.choice(streams)):
            found.append(step(model, cache, token))
        expected.append(np.array(step(plain, other, token)))
        match choose.randrange(7):
            case 0 | 1:
                mx.async_eval(choose.choice(found))
            case 2 if len(forks) < 4:
                forks.append((copy.deepcopy(cache), copy.deepcopy(other)))
            case 3:
                for c in (cache, other):
                    caches.trim_prompt_cache(c, 2)
            case 4:
                found.append(cache[1].values[..., : cache[1].offset, :])
                expected.append(np.array(other[1].values[..., : other[1].offset, :]))
            case 5:
                mx.async_eval([c.keys for c in cache])
    assert_same([np.array(y) for y in found], expected)
    for cache, other in forks:
        assert_same_caches(cache, other)
