"""Measures costs and gains around a model: time, memory, import, families.

    python -m bench.model_costs accelerate  # Time and memory for a 1B-shaped model.
    python -m bench.model_costs import      # Import time beyond mlx's own.
    python -m bench.model_costs families    # Five kinds of models against stock MLX.
    python -m bench.model_costs invariant   # The cost of batch_invariant=True.

Each prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from mlx_lm.models.cache import make_prompt_cache

import mlx_nibble
from bench import timing
from tests.support import families


def model_of(layers: int, **sizes: Any) -> nn.Module:
    """Return a quantized llama of random weights, not yet computed."""
    common = {"model_type": "llama", "rms_norm_eps": 1e-5, "num_hidden_layers": layers}
    model = llama.Model(llama.ModelArgs.from_dict(common | sizes))
    nn.quantize(model, 64, 4)
    return model


def resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def accelerating() -> dict[str, float]:
    """Accelerate a loaded model with the shapes of Llama 3.2 1B."""
    model = model_of(
        16,
        hidden_size=2048,
        intermediate_size=8192,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=True,
    )
    # Constants replace random weights, which take a minute to quantize. The biases
    # differ from scales times -8 in the last place only.
    stand_ins = {"scales": 0.5, "biases": -4.0}
    arrays = [
        (name, mx.full(a.shape, stand_ins.get(name.rsplit(".", 1)[-1], 0), a.dtype))
        for name, a in tree_flatten(model.parameters())
    ]
    arrays = [
        (name, mx.concatenate([a[:-1], a[-1:] + 1]) if name.endswith("biases") else a)
        for name, a in arrays
    ]
    model.load_weights(arrays)
    mx.eval(model.parameters())
    weights = sum(a.nbytes for _, a in arrays)
    del arrays
    mx.clear_cache()
    before = resident_bytes()
    start = time.perf_counter()
    report = mlx_nibble.accelerate(model)
    seconds = time.perf_counter() - start
    after = resident_bytes()
    mx.eval(model(mx.array([[1, 2, 3]])))
    used = resident_bytes()
    mx.eval(model.parameters())
    evaluated = resident_bytes()
    return {
        "layers": len(report.swapped),
        "checkpoint_bytes": weights,
        "seconds": seconds,
        "more_bytes": after - before,
        "more_bytes_after_a_prompt": used - before,
        "more_bytes_after_evaluation": evaluated - before,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def importing() -> dict[str, float]:
    """Time imports, in processes that take turns; ours imports mlx.core and mlx.nn."""

    def run(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    samples = timing.interleave(
        {"mlx": run("import mlx.core, mlx.nn"), "ours": run("import mlx_nibble")},
        seconds=20,
        least=15,
    )
    more = [
        ours - mlx for mlx, ours in zip(samples["mlx"], samples["ours"], strict=True)
    ]
    return {
        "mlx_ms": 1e3 * statistics.median(samples["mlx"]),
        "more_ms": 1e3 * statistics.median(more),
    }


def decode(model: nn.Module, context: int) -> Callable[[], object]:
    cache = make_prompt_cache(model)
    mx.eval(model(mx.ones((1, context), mx.int32), cache=cache))
    token = mx.array([[1]])

    def step() -> None:
        mx.eval(model(token, cache=cache))
        for layer in cache:
            layer.trim(1)

    return step


def read_prompt(model: nn.Module, length: int) -> Callable[[], object]:
    ids = mx.arange(length)[None] % 160
    return lambda: mx.eval(model(ids))


def by_family() -> dict[str, Any]:
    """Time the tests' models of 64 elements: they are all overhead, no arithmetic."""
    found = {}
    for family in families.FAMILIES:
        stock, ours = families.stock(family), families.ours(family)
        for name, work, size in (
            ("decode", decode, 32),
            ("prompt of 8", read_prompt, 8),
            ("prompt of 128", read_prompt, 128),
        ):
            found[f"{family}, {name}"] = timing.compared(
                work(stock, size), work(ours, size), 1.5
            )
    return found


def of_invariance() -> dict[str, Any]:
    """Time 6 of the 30 layers of SmolLM2's shapes, with over without invariance."""
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 4096}
    sizes |= {"num_attention_heads": 9, "num_key_value_heads": 3}
    with_, without = (model_of(6, **sizes) for _ in range(2))
    mx.eval(with_.parameters(), without.parameters())
    mlx_nibble.accelerate(with_, batch_invariant=True)
    mlx_nibble.accelerate(without)
    found = {}
    for context in (128, 2048):
        found[f"decode after {context}"] = timing.compared(
            decode(with_, context), decode(without, context), 5
        )
    for length in (4, 128, 1024):
        found[f"prompt of {length}"] = timing.compared(
            read_prompt(with_, length), read_prompt(without, length), 5
        )
    return found


MEASUREMENTS = {
    "accelerate": accelerating,
    "import": importing,
    "families": by_family,
    "invariant": of_invariance,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=MEASUREMENTS, nargs="+")
    for what in parser.parse_args().what:
        print(json.dumps({what: MEASUREMENTS[what]()}, indent=2), flush=True)


if __name__ == "__main__":
    main()
