"""Times tokens of several sequences: the part `batch` of kv_cache."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache

from bench import timing
from bench.kv_models import Call, heads_of, models
from mlx_nibble.bench.statistics import median


def products_of(net: Any, count: int) -> Call:
    """Return a call of all products of a token of some sequences, and no more."""
    layers = [m for m in net.modules() if "scales" in m and "Embedding" not in str(m)]
    tied = net.model.embed_tokens.as_linear
    inputs = {m.scales.shape[-1] * m.group_size for m in layers}
    inputs.add(net.args.hidden_size)
    xs = {width: mx.random.normal((count, 1, width)) for width in inputs}
    mx.eval(xs)

    def call() -> None:
        made = [m(xs[m.scales.shape[-1] * m.group_size]) for m in layers]
        if net.args.tie_word_embeddings:
            made.append(tied(xs[net.args.hidden_size]))
        mx.eval(made)

    return call


def batch(args: argparse.Namespace) -> None:
    """Time tokens of several sequences in mlx-lm's batch cache, padded on the left."""
    loaded = models(args, False)["ours"]
    heads, width = heads_of(loaded)
    keys = args.keys[0]
    taken: dict[str, Call] = {}
    for count in args.batches:
        caches = []
        for _ in loaded.layers:
            cache = BatchKVCache([i % 5 for i in range(count)])
            shape = (2, count, heads, keys, width)
            # The commands' caches have the checkpoint's 16-bit type.
            cache.update_and_fetch(*mx.random.normal(shape).astype(mx.float16))
            mx.eval(cache.state)
            caches.append(cache)

        def call(caches=caches, count=count):
            y = loaded(mx.array([[5]] * count), cache=caches)
            mx.eval(y, [cache.offset for cache in caches])
            for cache in caches:
                cache.trim(1)

        taken[str(count)] = call
        taken[f"{count} products"] = products_of(loaded, count)
    if args.cpu_time:
        taken = {name: in_cpu_time(call) for name, call in taken.items()}
    samples = timing.interleave(taken, args.seconds, most=100_000)
    first = args.batches[0]
    for count in args.batches:
        found: dict[str, Any] = {"sequences": count}
        for name, part in (("", ""), ("_of_products", " products")):
            own = samples[f"{count}{part}"]
            gain = timing.faster(samples[f"{first}{part}"], own).value * count / first
            found[f"ms{name}"] = round(1e3 * median(own).value, 3)
            found[f"tokens{name}"] = round(gain, 3)
        print(json.dumps(found), flush=True)


def in_cpu_time(call: Call) -> Call:
    """Return a call that measures the CPU time of all threads."""

    def measured() -> float:
        before = time.process_time()
        call()
        return time.process_time() - before

    return measured
