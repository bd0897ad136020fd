"""Times decoding with plain and quantized KV caches, beside stock MLX.

    python -m bench.kv_cache attention      # One layer's attention.
    python -m bench.kv_cache model FOLDER   # Whole tokens.
    python -m bench.kv_cache prompt FOLDER  # Prompts of --keys tokens.
    python -m bench.kv_cache batch FOLDER   # Whole tokens of several sequences.
    python -m bench.kv_cache quantize FOLDER  # The part of a token that quantizes.

Caches hold random keys and values: their contents have no part in the time. All kinds
of caches take turns. Prints one JSON object for each number of keys or sequences: the
median milliseconds of each kind, the bytes of its cache, and the speed of each kind
relative to a float32 cache on our kernels, from neighbouring turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, make_prompt_cache

from bench import timing
from bench.kv_batch import batch
from bench.kv_models import Call, heads_of, models
from mlx_nibble.acceleration.route import other_layers
from mlx_nibble.bench.statistics import median
from mlx_nibble.lm.caches import CacheType, stored_as

PLAIN = "float32"
KINDS: dict[str, mx.Dtype | int] = {
    PLAIN: mx.float32,
    "float16": mx.float16,
    "bfloat16": mx.bfloat16,
    "8 bits": 8,
    "4 bits": 4,
}
GROUP = 64


def filled(shape: Sequence[int], kind: mx.Dtype | int) -> Any:
    """Return a cache with random keys and values [B, heads, keys, D]."""
    cache = KVCache()
    dtype = mx.float32 if isinstance(kind, int) else kind
    keys, values = (mx.random.normal(shape).astype(dtype) for _ in range(2))
    cache.update_and_fetch(keys, values)
    made = cache.to_quantized(GROUP, kind) if isinstance(kind, int) else cache
    mx.eval(made.state)
    return made


def report(about: dict[str, Any], calls: dict[str, Call], sizes: dict[str, int], s):
    """Time the calls in turns and print the result."""
    taken = timing.interleave(calls, s, least=3, most=100_000)
    plain = taken[f"ours, {PLAIN}"]
    print(
        json.dumps(
            about
            | {
                name: {
                    "ms": round(1e3 * median(samples).value, 3),
                    "speed": round(timing.faster(plain, samples).value, 3),
                    "bytes": sizes[name],
                }
                for name, samples in taken.items()
            }
        ),
        flush=True,
    )


def attention(args: argparse.Namespace) -> None:
    """Time one layer's attention of one token, and of a chunk of a prompt."""
    theirs = base.scaled_dot_product_attention
    ours = other_layers(False, True).function(theirs)
    for keys in args.keys:
        calls: dict[str, Call] = {}
        sizes: dict[str, int] = {}
        for name, kind in KINDS.items():
            cache = filled((args.batch, args.kv_heads, keys, args.width), kind)
            q = mx.random.normal((args.batch, args.heads, args.rows, args.width))
            mx.eval(q)
            for who, function in (("ours", ours), ("stock", theirs)):
                if isinstance(kind, mx.Dtype) and kind != mx.float32 and who != "ours":
                    continue

                def call(function=function, cache=cache, q=q):
                    # mlx-lm scales the queries in place.
                    k, v = cache.keys_and_values()
                    mask: Any = "causal" if q.shape[2] > 1 else None
                    mx.eval(function(q + 0, k, v, cache, q.shape[3] ** -0.5, mask))

                calls[f"{who}, {name}"] = call
                sizes[f"{who}, {name}"] = cache.nbytes
        report({"keys": keys, "rows": args.rows}, calls, sizes, args.seconds)


def model(args: argparse.Namespace) -> None:
    """Time whole tokens after a number of keys."""
    loaded = models(args, args.stock)
    heads, width = heads_of(loaded["ours"])
    for keys in args.keys:
        calls: dict[str, Call] = {}
        sizes: dict[str, int] = {}
        for name, kind in KINDS.items():
            shape = (args.batch, heads, keys, width)
            caches = [filled(shape, kind) for _ in loaded["ours"].layers]
            for who, net in loaded.items():
                if isinstance(kind, mx.Dtype) and kind != mx.float32 and who != "ours":
                    continue

                def call(net=net, caches=caches):
                    mx.eval(net(mx.array([[5]] * args.batch), cache=caches))
                    for cache in caches:
                        cache.trim(1)

                calls[f"{who}, {name}"] = call
                sizes[f"{who}, {name}"] = sum(cache.nbytes for cache in caches)
        report({"keys": keys}, calls, sizes, args.seconds)


def prompt(args: argparse.Namespace) -> None:
    """Time prompts, in the chunks of 2048 tokens that mlx-lm reads."""
    loaded = models(args, args.stock)
    for keys in args.keys:
        calls: dict[str, Call] = {}
        sizes: dict[str, int] = {}
        tokens = mx.random.randint(0, 1000, (1, keys))
        for name, kind in KINDS.items():
            for who, net in loaded.items():
                if isinstance(kind, mx.Dtype) and kind != mx.float32 and who != "ours":
                    continue

                def call(
                    net=net,
                    kind=kind,
                    name=f"{who}, {name}",
                    keys=keys,
                    tokens=tokens,
                    sizes=sizes,
                ):
                    caches = make_prompt_cache(net)
                    if isinstance(kind, int):
                        caches = [c.to_quantized(GROUP, kind) for c in caches]
                    stored = CacheType()
                    stored.add(kind if "16" in str(kind) else None)
                    with stored_as(stored):
                        for start in range(0, keys, 2048):
                            net(tokens[:, start : start + 2048], cache=caches)
                            mx.eval([c.state for c in caches])
                            mx.clear_cache()
                    sizes[name] = sum(c.nbytes for c in caches)

                calls[f"{who}, {name}"] = call
        report({"prompt": keys}, calls, sizes, args.seconds)


def quantize(args: argparse.Namespace) -> None:
    """Print the share of MLX's quantization in a token and in a prompt, in CPU time."""
    loaded = models(args, False)["ours"]
    heads, width = heads_of(loaded)
    many = 2 * len(loaded.layers)

    def used(call: Call) -> float:
        """Return the least CPU time of some calls: other programs disturb it less."""
        taken = []
        for _ in range(7):
            start = time.process_time()
            call()
            taken.append(time.process_time() - start)
        return min(taken)

    for keys in args.keys:
        caches = [filled((1, heads, keys, width), 8) for _ in loaded.layers]

        def step(tokens: mx.array, caches=caches):
            mx.eval(loaded(tokens, cache=caches), [c.state for c in caches])
            for cache in caches:
                cache.trim(tokens.shape[1])

        found: dict[str, Any] = {"keys": keys}
        for name, count in (("token", 1), ("prompt of 256", 256)):
            rows = mx.random.normal((1, heads, count, width))
            mx.eval(rows)
            # The sums make MLX compute each call.
            sums = used(lambda r=rows: mx.eval([r + i for i in range(many)]))
            codes = used(
                lambda r=rows: mx.eval(
                    [mx.quantize(r + i, GROUP, 8) for i in range(many)]
                )
            )
            whole = used(lambda c=count: step(mx.full((1, c), 5)))
            found[name] = {"share": (codes - sums) / whole, "ms": 1e3 * whole}
        print(json.dumps(found), flush=True)


STUDIES: dict[str, Callable[[argparse.Namespace], None]] = {
    "attention": attention,
    "model": model,
    "prompt": prompt,
    "batch": batch,
    "quantize": quantize,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=STUDIES)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--keys", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 8, 32])
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--stock", action="store_true", help="stock models, too")
    parser.add_argument("--layers", type=int, help="the model's first layers only")
    parser.add_argument("--activations", choices=["int8", "int16"])
    parser.add_argument("--cpu-time", action="store_true", help="of batches")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    STUDIES[args.what](args)


if __name__ == "__main__":
    main()
