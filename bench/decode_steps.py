"""Measure recorded decoder blocks beside their code: `python -m bench.decode_steps`.

A model decodes in turns: with each block replayed as one node, and with its code
building the graph. Prints the nodes of a token, the processor time that the thread
spends on a token which builds and evaluates graphs, and tokens per second, as JSON.
Both must choose the same tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import lm
from mlx_nibble.bench.statistics import median

_WARM_UP = 8


def _caches(model: nn.Module, batch: int, kv_bits: int | None) -> list[Any]:
    """Return the caches that mlx-lm decodes with."""
    caches = make_prompt_cache(model)
    if batch > 1:
        return [type(c).merge([c] * batch) for c in caches]
    return [c.to_quantized(64, kv_bits) for c in caches] if kv_bits else caches


def _nodes(model: nn.Module, prompt: mx.array, batch: int, kv_bits: int | None) -> int:
    """Return the number of nodes of a token, with its choice."""
    cache = _caches(model, batch, kv_bits)
    rows = mx.broadcast_to(prompt, (batch, prompt.size))
    for tokens in (rows[:, :-2], rows[:, -2:-1]):  # the second one is recorded
        mx.eval(model(tokens, cache=cache))
    mx.eval([c.state for c in cache])
    logits = model(rows[:, -1:], cache=cache)[:, -1, :]
    token = mx.argmax(logits - mx.logsumexp(logits, axis=-1, keepdims=True), axis=-1)
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, token)
        return len(re.findall("shape=rectangle", file.read()))


def _tokens(
    model: nn.Module, prompt: mx.array, count: int, batch: int, kv_bits: int | None
) -> Iterator[Any]:
    """Yield the tokens of each step of mlx-lm's generation."""
    if batch == 1:
        quantized = {"kv_bits": kv_bits, "quantized_kv_start": 0}
        yield from (
            t for t, _ in generate_step(prompt, model, max_tokens=count, **quantized)
        )
        return
    generator = BatchGenerator(model, max_tokens=count, prefill_batch_size=batch)
    generator.insert([prompt.tolist()[i:] for i in range(batch)])
    while responses := generator.next_generated():
        yield tuple(r.token for r in responses)
    generator.close()


def _decode(
    model: nn.Module, prompt: mx.array, count: int, batch: int, kv_bits: int | None
) -> tuple[float, ...]:
    """Return tokens per second, milliseconds of the thread, and the tokens."""
    chosen = []
    wall = thread = 0.0
    for tokens in _tokens(model, prompt, count + _WARM_UP, batch, kv_bits):
        chosen.append(tokens)
        if len(chosen) == _WARM_UP:
            wall, thread = time.perf_counter(), time.thread_time()
    wall, thread = time.perf_counter() - wall, time.thread_time() - thread
    return batch * count / wall, 1e3 * thread / count, *chosen


def compare(
    folder: str,
    context: int,
    count: int,
    rounds: int,
    batch: int,
    kv_bits: int | None,
    **load: Any,
) -> dict:
    """Decode in turns with and without recordings."""
    model, *_ = lm.load(folder, **load)
    blocks = [m for m in model.modules() if hasattr(type(m), "_steps")]
    replayed = [type(block) for block in blocks]

    def use(steps: bool) -> None:
        for block, kind in zip(blocks, replayed, strict=True):
            block.__class__ = kind if steps else kind.__base__

    prompt = mx.array([(7 * i + 3) % 40000 + 100 for i in range(context)])
    runs: dict[bool, list] = {True: [], False: []}
    nodes = {}
    for steps in runs:
        use(steps)
        nodes[steps] = _nodes(model, prompt, batch, kv_bits)
    for _ in range(rounds):
        for steps, taken in runs.items():
            use(steps)
            taken.append(_decode(model, prompt, count, batch, kv_bits))
    assert len({run[2:] for taken in runs.values() for run in taken}) == 1
    pairs = list(zip(runs[True], runs[False], strict=True))
    found: dict[str, Any] = {"blocks": len(blocks), "context": context}
    found |= {"batch": batch, "kv_bits": kv_bits, **load}
    for name, steps in (("steps", True), ("code", False)):
        found[name] = {
            "nodes": nodes[steps],
            "tokens_per_second": median([r[0] for r in runs[steps]]).value,
            "thread_ms": median([r[1] for r in runs[steps]]).value,
        }
    found["faster"] = median([a[0] / b[0] for a, b in pairs]).value
    found["thread_ratio"] = median([a[1] / b[1] for a, b in pairs]).value
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="folder of a quantized model")
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1, help="sequences")
    parser.add_argument("--kv-bits", type=int, choices=[4, 8])
    parser.add_argument("--activations", choices=["int8", "int16"])
    args = vars(parser.parse_args())
    if not args["activations"]:
        del args["activations"]
    args |= {"count": args.pop("tokens")}
    print(json.dumps(compare(**args)))


if __name__ == "__main__":
    main()
