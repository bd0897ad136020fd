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
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from mlx_nibble import lm
from mlx_nibble.bench.statistics import median

_WARM_UP = 8


def _nodes(model: nn.Module, prompt: mx.array) -> int:
    """Return the number of nodes of a token, with its choice."""
    cache = make_prompt_cache(model)
    for tokens in (prompt[:-2], prompt[-2:-1]):  # the second one is recorded
        mx.eval(model(tokens[None], cache=cache))
    logits = model(prompt[-1:][None], cache=cache)[:, -1, :]
    token = mx.argmax(logits - mx.logsumexp(logits, keepdims=True), axis=-1)
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, token)
        return len(re.findall("shape=rectangle", file.read()))


def _decode(model: nn.Module, prompt: mx.array, count: int) -> tuple[float, ...]:
    """Return tokens per second, milliseconds of the thread, and the tokens."""
    chosen = []
    wall = thread = 0.0
    for token, _ in generate_step(prompt, model, max_tokens=count + _WARM_UP):
        chosen.append(token)
        if len(chosen) == _WARM_UP:
            wall, thread = time.perf_counter(), time.thread_time()
    wall, thread = time.perf_counter() - wall, time.thread_time() - thread
    return count / wall, 1e3 * thread / count, *chosen


def compare(folder: str, context: int, count: int, rounds: int, **load: Any) -> dict:
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
        nodes[steps] = _nodes(model, prompt)
    for _ in range(rounds):
        for steps, taken in runs.items():
            use(steps)
            taken.append(_decode(model, prompt, count))
    assert len({run[2:] for taken in runs.values() for run in taken}) == 1
    pairs = list(zip(runs[True], runs[False], strict=True))
    found: dict[str, Any] = {"blocks": len(blocks), "context": context, **load}
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
    parser.add_argument("--activations", choices=["int8"])
    args = parser.parse_args()
    options = {"activations": args.activations} if args.activations else {}
    found = compare(args.folder, args.context, args.tokens, args.rounds, **options)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
