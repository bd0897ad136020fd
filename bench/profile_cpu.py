"""Profiles a model on the CPU by operation, before and after accelerate().

    NIBBLE_NUM_THREADS=1 python -m bench.profile_cpu MODEL_FOLDER

Times are CPU time of all threads, which other programs hardly disturb. With more than
one thread they include the spinning of waiting threads. The model must be a llama: the
table of operations takes its shapes from the configuration.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load
from mlx_lm.models.activations import swiglu
from mlx_lm.models.cache import make_prompt_cache

import mlx_nibble
from mlx_nibble import fast
from mlx_nibble.cli.console import filled, out

ROUNDS = 5


def cpu_ms(call: Callable[[], object]) -> float:
    """Return the median CPU time of a call in ms, without the first unless slow."""
    taken = []
    while len(taken) <= ROUNDS:
        before = time.process_time()
        call()
        taken.append(time.process_time() - before)
        if taken[0] > 1:
            return 1e3 * taken[0]
    return 1e3 * statistics.median(taken[1:])


def graph_nodes(*arrays: mx.array) -> int:
    with tempfile.NamedTemporaryFile("r", suffix=".dot") as file:
        mx.export_to_dot(file.name, *arrays)
        return len(re.findall("shape=rectangle", file.read()))


def whole_model(model: nn.Module, context: int, tokens: int) -> list[str]:
    """Return nodes per token, CPU ms per prompt token and per new token."""
    prompt = mx.array([[7 * i % 40_000 for i in range(context)]])
    step = mx.array([[5]])

    def arrays(cache):
        return [a for c in cache for a in (c.keys, c.values)]

    def read():
        cache = make_prompt_cache(model)
        # As mlx-lm's generate_step: only the cache of the prompt is needed.
        model(prompt, cache=cache)
        mx.eval(arrays(cache))
        return cache

    cache = read()
    nodes = graph_nodes(model(step, cache=cache), *arrays(cache))
    mx.eval(arrays(cache))

    def write():
        for _ in range(tokens):
            mx.eval(model(step, cache=cache))

    return [
        str(nodes),
        f"{cpu_ms(read) / context:.2f}",
        f"{cpu_ms(write) / tokens:.2f}",
    ]


def layer_operations(model: nn.Module, rows: int, context: int) -> dict:
    """Return the operations of one layer by name, as functions of a namespace."""
    attention, mlp = model.layers[0].self_attn, model.layers[0].mlp
    heads, kv_heads = attention.n_heads, attention.n_kv_heads
    D = model.args.head_dim or model.args.hidden_size // heads
    x = mx.random.normal((1, rows, model.args.hidden_size))
    q = mx.random.normal((1, rows, heads, D)).transpose(0, 2, 1, 3)
    k, v = mx.random.normal((2, 1, kv_heads, context + 256, D))[..., :context, :]
    gate = mx.random.normal((1, rows, model.args.intermediate_size))
    weight = mx.ones(model.args.hidden_size)
    mx.eval(x, q, k, v, gate, weight)
    mask = "causal" if rows > 1 else None

    def linear(_):
        inner = [getattr(attention, n)(x) for n in ("q_proj", "k_proj", "v_proj")]
        out = attention.o_proj(q.transpose(0, 2, 1, 3).flatten(2))
        return [*inner, out, mlp.gate_proj(x), mlp.up_proj(x), mlp.down_proj(gate)]

    def rope(f, a):
        return f.rope(
            a, D, traditional=False, base=1e5, scale=1.0, offset=context - rows
        )

    return {
        "linear layers": linear,
        "rms_norm, 2": lambda f: [f.rms_norm(x, weight, 1e-5) for _ in range(2)],
        "rope, queries and keys": lambda f: [rope(f, q), rope(f, q[:, :kv_heads])],
        "attention": lambda f: [
            f.scaled_dot_product_attention(q, k, v, scale=D**-0.5, mask=mask)
        ],
        "swiglu": lambda f: [(fast.swiglu if f is fast else swiglu)(gate, gate)],
        "residual additions, 2": lambda _: [x + x, x + x],
    }


def operations(model: nn.Module, rows: int, context: int, f) -> dict[str, float]:
    """Return the CPU ms of each kind of operation in all layers, with scheduling."""
    layers = len(model.layers)
    return {
        name: cpu_ms(lambda op=op: mx.eval([op(f) for _ in range(layers)]))
        for name, op in layer_operations(model, rows, context).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model folder of mlx-lm")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=8)
    args = parser.parse_args()
    model = load(args.model)[0]
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())

    heading = ["", "graph nodes per token", "ms per prompt token", "ms per new token"]
    rows = [heading, ["MLX", *whole_model(model, args.context, args.tokens)]]
    before = {r: operations(model, r, args.context, mx.fast) for r in (1, args.context)}
    report = mlx_nibble.accelerate(model)
    for routed in report.routed:
        routed.module.__class__ = routed.original
    rows += [["linear layers ours", *whole_model(model, args.context, args.tokens)]]
    report.undo()
    mlx_nibble.accelerate(model)
    rows += [["all ours", *whole_model(model, args.context, args.tokens)]]
    after = {r: operations(model, r, args.context, fast) for r in (1, args.context)}
    out.print(filled(rows[0], rows[1:]))
    for count in before:
        print(f"\nms of {len(model.layers)} layers, {count} of {args.context} tokens")
        rows = [["", "MLX", "share", "ours", "share"]]
        sums = [sum(before[count].values()), sum(after[count].values())]
        for name, ms in before[count].items():
            ours = after[count][name]
            shares = [f"{ms / sums[0]:.0%}", f"{ours / sums[1]:.0%}"]
            rows.append([name, f"{ms:.2f}", shares[0], f"{ours:.2f}", shares[1]])
        out.print(filled(rows[0], rows[1:]))


if __name__ == "__main__":
    main()
