"""Times every kind of call, and every model family, against stock MLX.

    python -m bench.against_stock_mlx calls     # each kind of product that mlx-lm makes
    python -m bench.against_stock_mlx families  # whole models, in three types

Both take turns in one process. The ratio is MLX's time over ours: the median over
neighbouring turns, with a 95 % interval. Prints one JSON object, and the ratios below 1
on stderr. `--output FILE` writes the object to a file.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from bench import timing
from bench.model_costs import decode, read_prompt
from mlx_nibble import ops
from mlx_nibble.bench import machine
from tests.support import families

DTYPES = (mx.float32, mx.float16, mx.bfloat16)
FORMATS = [(2, 64), (3, 64), (4, 32), (4, 64), (4, 128), (5, 64), (6, 64), (8, 64)]
N, K, EXPERTS, HEADS = 256, 512, 8, 4

Pair = tuple[Callable[[], object], Callable[[], object]]


def quantized(shape: tuple[int, ...], bits: int, group_size: int, dtype: mx.Dtype):
    w = mx.random.normal(shape).astype(dtype)
    return mx.quantize(w, group_size, bits)


def kinds(bits: int, group_size: int, dtype: mx.Dtype) -> Iterator[tuple[str, Pair]]:
    """Yield MLX's call and ours, by the purpose that mlx-lm has for it."""
    form = {"group_size": group_size, "bits": bits}

    def product(name: str, x: tuple[int, ...], w: tuple[int, ...], **others: Any):
        a = mx.random.normal(x).astype(dtype)
        arrays = quantized(w, bits, group_size, dtype)
        others = {key: value for key, value in others.items() if value is not None}
        mx.eval(a, arrays, others)

        def run(home: Any) -> Callable[[], object]:
            return lambda: mx.eval(getattr(home, name)(a, *arrays, **form, **others))

        return run(mx), run(ops)

    def experts(tokens: int, ordered: bool, transpose: bool = True):
        which = np.random.default_rng(0).integers(0, EXPERTS, 2 * tokens)
        which = np.sort(which) if ordered else which.reshape(1, tokens, 2)
        width = K if transpose else N
        x = (2 * tokens, 1, width) if ordered else (1, tokens, 1, 1, width)
        return product(
            "gather_qmm",
            x,
            (EXPERTS, N, K),
            rhs_indices=mx.array(which.astype(np.uint32)),
            sorted_indices=ordered,
            transpose=transpose,
        )

    for rows in (1, 4, 8, 64):
        yield f"linear, {rows} rows", product("quantized_matmul", (1, rows, K), (N, K))
    for rows in (1, 16):
        yield (
            f"not transposed, {rows} rows",
            product("quantized_matmul", (1, rows, N), (N, K), transpose=False),
        )
    for transpose in (True, False):
        turned = "" if transpose else ", not transposed"
        x = (1, HEADS, 1, K if transpose else N)
        yield (
            f"latent attention{turned}",
            product("quantized_matmul", x, (HEADS, N, K), transpose=transpose),
        )
    yield "experts, 1 token", experts(1, False)
    yield "experts, 8 tokens", experts(8, False)
    yield "experts, 64 tokens, sorted", experts(64, True)
    arrays = quantized((8, K), bits, group_size, dtype)
    mx.eval(arrays)
    yield (
        "embedding, 8 rows",
        (
            lambda: mx.eval(mx.dequantize(*arrays, **form)),
            lambda: mx.eval(ops.dequantize(*arrays, **form)),
        ),
    )


def of_calls(seconds: float) -> dict[str, Any]:
    return {
        f"{kind}, {bits} bits, group {group_size}, {str(dtype)[9:]}": timing.compared(
            *pair, seconds
        )
        for dtype in DTYPES
        for bits, group_size in FORMATS
        for kind, pair in kinds(bits, group_size, dtype)
    }


def of_families(seconds: float) -> dict[str, Any]:
    found = {}
    for family in families.FAMILIES:
        for dtype in DTYPES:
            stock, ours = (
                make(family, dtype) for make in (families.stock, families.ours)
            )
            for name, work, size in (
                ("decode", decode, 32),
                ("prompt of 8", read_prompt, 8),
                ("prompt of 128", read_prompt, 128),
            ):
                pair = work(stock, size), work(ours, size)
                key = f"{family}, {name}, {str(dtype)[9:]}"
                found[key] = timing.compared(*pair, seconds)
    return found


MEASUREMENTS = {"calls": (of_calls, 0.1), "families": (of_families, 0.6)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("--output", type=Path, help="file for the result")
    args = parser.parse_args()
    measure, seconds = MEASUREMENTS[args.what]
    found = measure(seconds)
    result = {
        "command": ["python", "-m", "bench.against_stock_mlx", *sys.argv[1:]],
        "machine": machine.describe(),
        "versions": machine.versions(),
        "ratios": found,
    }
    text = json.dumps(result, indent=1)
    if args.output:
        args.output.write_text(text + "\n")
    else:
        print(text)
    slower = {name: r for name, r in found.items() if r["ratio"] < 1}
    least = min(found, key=lambda name: found[name]["ratio"])
    print(
        f"{len(found)} ratios, {len(slower)} below 1; the least "
        f"{found[least]['ratio']:.2f}: {least}",
        file=sys.stderr,
    )
    for name, r in slower.items():
        print(
            f"  {r['ratio']:.2f} ({r['low']:.2f} to {r['high']:.2f}) {name}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
