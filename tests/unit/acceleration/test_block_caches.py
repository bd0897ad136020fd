"""Recorded decoder blocks with each cache of mlx-lm, and in families with experts."""

import copy
import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models import cache as caches

from tests.support.blocks import (
    PROMPT,
    TOKENS,
    accelerated,
    assert_same,
    by_code,
    nodes,
    replaying,
    step,
)
from tests.support.graph import node_names

WINDOW = 8
PADDING = [0, 2, 1]
Made = Callable[[Any], list]


def plain(model: Any) -> list:
    return caches.make_prompt_cache(model)


def quantized(bits: int) -> Made:
    def made(model: Any) -> list:
        return [c.to_quantized(32, bits) for c in plain(model)]

    return made


def rotating(keep: int) -> Made:
    def made(model: Any) -> list:
        return [caches.RotatingKVCache(WINDOW, keep) for _ in model.layers]

    return made


def batched(model: Any) -> list:
    return [
        caches.BatchRotatingKVCache(c.max_size, PADDING)
        if isinstance(c, caches.RotatingKVCache)
        else caches.BatchKVCache(PADDING)
        for c in plain(model)
    ]


def batched_rotating(model: Any) -> list:
    return [caches.BatchRotatingKVCache(WINDOW, PADDING) for _ in model.layers]


KINDS = {
    "plain": plain,
    "8 bits": quantized(8),
    "4 bits": quantized(4),
    "rotating": rotating(0),
    "rotating, 4 stay": rotating(4),
    "batch": batched,
    "rotating batch": batched_rotating,
}


def batch_of(cache: list) -> int:
    offset = cache[0].offset
    return 1 if isinstance(offset, int) else offset.size


class Pair:
    """A model whose blocks are recorded, and the same by its code."""

    def __init__(self, made: Made, family: str = "llama", **changes: Any):
        self.models = [accelerated(family, **changes) for _ in range(2)]
        by_code(self.models[1])
        self.caches = [made(model) for model in self.models]
        self.nodes: list[int] = []
        prompt = mx.concatenate([PROMPT] * batch_of(self.caches[0]))
        for model, cache in zip(self.models, self.caches, strict=True):
            mx.eval(model(prompt, cache=cache))

    def decode(self, tokens: list[int]) -> None:
        """Decode with both; fail unless all bits are the same."""
        for token in tokens:
            ours, theirs = (
                step(model, cache, token, batch_of(cache))
                for model, cache in zip(self.models, self.caches, strict=True)
            )
            self.nodes.append(nodes(ours))
            assert mx.array_equal(ours, theirs)

    def assert_same_states(self) -> None:
        for ours, theirs in zip(*self.caches, strict=True):
            names = vars(theirs).keys()
            assert vars(ours).keys() == names
            for name in names - {"keys", "values"}:
                one, other = getattr(ours, name), getattr(theirs, name)
                same = one == other
                assert same.all().item() if isinstance(same, mx.array) else same
                assert type(one) is type(other)
            for one, other in zip(*map(arrays, (ours, theirs)), strict=True):
                assert mx.array_equal(one, other)


def arrays(cache: Any) -> list[mx.array]:
    both = cache.keys_and_values()
    return [a for v in both for a in ([v] if isinstance(v, mx.array) else v)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_each_cache_of_mlx_lm(kind, family):
    sizes = {"hidden_size": 128}
    if family == "qwen3_moe":
        sizes["head_dim"] = 32
    pair = Pair(KINDS[kind], family, **sizes)
    pair.decode(TOKENS * 5)
    # The first token of some caches makes them longer or shorter.
    assert set(pair.nodes[1:]) == {3}
    pair.assert_same_states()


@pytest.mark.parametrize("made", [plain, batched])
@pytest.mark.parametrize(
    "family",
    ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3", "gemma3_text", "phi3"],
)
def test_other_families(family, made):
    pair = Pair(made, family)
    pair.decode(TOKENS * 5)
    blocks = len(replaying(pair.models[0]))
    assert blocks and set(pair.nodes[1:]) == {blocks}
    pair.assert_same_states()


def test_64_experts_of_a_batch_are_sorted():
    def made(model: Any) -> list:
        return [caches.BatchKVCache([0] * 40) for _ in model.layers]

    pair = Pair(made, "mixtral")
    pair.decode(TOKENS)
    assert set(pair.nodes[1:]) == {3}


def test_a_batch_has_no_more_nodes_than_blocks_and_a_mask():
    pair = Pair(batched)
    pair.decode(TOKENS)
    y = step(pair.models[0], pair.caches[0], batch=3)
    names = node_names(y)
    # The tokens, the embedding, the mask, the last norm and product.
    assert sum(names.values()) - names["NibbleStep"] <= 36


def test_sequences_leave_and_join_a_batch():
    pair = Pair(batched)
    pair.decode(TOKENS)
    for cache in pair.caches:
        for c in cache:
            c.filter(mx.array([0, 2]))
    pair.decode(TOKENS)
    pair.assert_same_states()
    for cache in pair.caches:
        for c in cache:
            c.extend(copy.deepcopy(c))
    pair.decode(TOKENS)
    pair.assert_same_states()
    for cache in pair.caches:
        cache[:] = [c.extract(1) for c in cache]
    pair.decode(TOKENS)
    pair.assert_same_states()
    assert pair.nodes.count(3) >= len(pair.nodes) - 4


@pytest.mark.parametrize("kind", ["8 bits", "rotating", "batch"])
def test_trimmed_caches(kind):
    pair = Pair(KINDS[kind], hidden_size=128)
    pair.decode(TOKENS[:2])
    for cache in pair.caches:
        assert caches.trim_prompt_cache(cache, 2) == 2
    pair.decode(TOKENS * 3)
    pair.assert_same_states()


def test_an_older_array_of_positions_keeps_its_values():
    pair = Pair(batched)
    pair.decode(TOKENS[:2])
    before = [c.offset for c in pair.caches[0]]
    values = [o.tolist() for o in before]
    pair.decode(TOKENS)
    assert [o.tolist() for o in before] == values


def test_a_copy_of_a_batch_keeps_its_values():
    pair = Pair(batched_rotating)
    pair.decode(TOKENS * 2)
    kept = [copy.deepcopy(cache) for cache in pair.caches]
    pair.decode(TOKENS)
    pair.caches = kept
    pair.decode(TOKENS[::-1])
    pair.assert_same_states()


@pytest.mark.parametrize("shape", [(1, 1), (3, 1, 1), (1, 4, 1), ()])
@pytest.mark.parametrize("dtype", [mx.bool_, mx.float32])
def test_masks_of_a_user(shape, dtype):
    pair = Pair(batched)
    pair.decode(TOKENS[:2])
    found = []
    for model, cache in zip(pair.models, pair.caches, strict=True):
        layer, c = model.layers[0], cache[0]
        for _ in range(3):
            mx.random.seed(c._idx)
            mask = mx.random.normal((*shape, c._idx + 1)) > -1
            x = mx.random.normal((3, 1, 64))
            found.append(layer(x, mask.astype(dtype), c))
    assert [nodes(y) for y in found[:3]] == [1, 2, 3]  # each waits for the last
    assert_same([*map(mx.array, found[:3])], [*map(mx.array, found[3:])])


@pytest.mark.parametrize("keys", [1, 7])
def test_a_mask_of_other_keys_is_what_it_is_to_the_code(keys):
    model = accelerated()
    cache = batched(model)
    mx.eval(model(mx.concatenate([PROMPT] * 3), cache=cache))
    layer: Any = model.layers[0]
    x, mask = mx.ones((3, 1, 64)), mx.ones((keys,), mx.bool_)
    twin = copy.deepcopy(cache[0])
    results = []
    for call, c in (
        (layer, cache[0]),
        (lambda *a: type(layer).__base__.__call__(layer, *a), twin),
    ):
        try:
            results.append(mx.array(call(x, mask, c)))
        except ValueError as error:
            results.append(str(error))
    assert type(results[0]) is type(results[1])
    if keys == 1:
        assert mx.array_equal(results[0], results[1])


def cache_code(source: str) -> Any:
    """Return a function that is defined where mlx-lm defines its caches."""
    space = vars(caches)
    exec(f"def _patched(self, keys, values):\n{source}", space)
    return space.pop("_patched")


@pytest.mark.parametrize(
    "change",
    ["self.offset += 1", "self.later = 1", "self.keys = self.keys[..., ::-1, :]"],
)
def test_a_cache_of_another_release_that_takes_tokens_otherwise(monkeypatch, change):
    fetch = vars(caches.KVCache)["update_and_fetch"]
    monkeypatch.setattr(caches, "_fetch", fetch, raising=False)
    monkeypatch.setattr(
        caches.KVCache,
        "update_and_fetch",
        cache_code(
            f"    found = _fetch(self, keys, values)\n    {change}\n    return found"
        ),
    )
    pair = Pair(plain)
    pair.decode(TOKENS)
    assert not any(pair.nodes)


def test_arguments_of_a_model_are_read_at_each_call():
    pair = Pair(plain, "deepseek_v3")
    pair.decode(TOKENS)
    for model in pair.models:
        model.layers[1].mlp.config.n_shared_experts = None
    pair.decode(TOKENS)
    assert set(pair.nodes) == {3}


def test_a_batch_is_written_in_place():
    def made(model: Any) -> list:
        return [caches.BatchKVCache([0] * 8) for _ in model.layers]

    pair = Pair(made, num_hidden_layers=1, hidden_size=256)
    pair.decode(TOKENS)
    model, cache = pair.models[0], pair.caches[0]
    held = cache[0].keys.nbytes
    mx.eval(step(model, cache, batch=8))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(step(model, cache, batch=8))
    assert mx.get_peak_memory() - before < held


def large_pages(address: int) -> int:
    """Return the bytes of large pages in the mapping that has an address."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if mapping := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            first, end = (int(a, 16) for a in mapping.groups())
            here = first <= address < end
        elif here and line.startswith("AnonHugePages:"):
            return 1024 * int(line.split()[1])
    raise AssertionError(f"no mapping has {address:x}")


def has_large_pages() -> bool:
    """Return whether the system can move memory to pages of 2 MB: Linux 6.1 can."""
    size = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
    if not size.exists() or int(size.read_text()) != 2 << 20:
        return False
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, 4 << 20, flags=private) as memory:
        memory[:] = bytes(len(memory))
        try:
            memory.madvise(25)  # MADV_COLLAPSE
        except OSError:
            return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="large pages are asked of Linux")
def test_a_cache_moves_to_large_pages_and_keeps_its_values():
    if not has_large_pages():
        pytest.skip("this system moves no memory to large pages")

    def made(model: Any) -> list:
        return [caches.BatchKVCache([0] * 64) for _ in model.layers]

    pair = Pair(made, num_hidden_layers=1, hidden_size=256)
    pair.decode(TOKENS)
    pair.assert_same_states()
    keys = pair.caches[0][0].keys
    assert keys.nbytes >= 8 << 20
    address = np.array(keys, copy=False).__array_interface__["data"][0]
    assert large_pages(address) >= keys.nbytes - (4 << 20)
