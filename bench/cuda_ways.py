"""Times the ways to compute a product on MLX's GPU: python -m bench.cuda_ways

For each number of rows: MLX's quantized product, ours, MLX's `dequantize` with a dense
product, the dense product alone, and our `dequantize` with it ("both"). The same for
mixtures of experts. Weights are of 4
bits in groups of 64 and bfloat16, random, and more than the L2 cache holds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlx_nibble import ops

# More than the 50 MB of an H200's L2 cache, in bytes of packed weights.
POOL = 300e6
TURNS = 7
SHAPES = [(4096, 4096), (14336, 4096), (4096, 14336)]
ROWS = [1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 256, 512, 2048]
# Name, experts, chosen, N, K.
MIXTURES = [
    ("Qwen3-30B-A3B", 128, 8, 768, 2048),
    ("Mixtral 8x7B", 8, 2, 14336, 4096),
]
TOKENS = [1, 8, 32, 128, 512, 2048]

Way = Callable[[int], mx.array]


def times(ways: dict[str, Way], count: int) -> dict[str, list[float]]:
    """Return the least, median and most microseconds of a product, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, way in ways.items():
            mx.synchronize()
            begin = time.perf_counter()
            results = [way(i) for i in range(count)]
            mx.eval(results)
            mx.synchronize()
            if turn:
                took = (time.perf_counter() - begin) * 1e6 / count
                found[name].append(took)
    return {name: [min(t), statistics.median(t), max(t)] for name, t in found.items()}


def dense(N: int, K: int) -> list[dict]:
    """Return the times of products with one matrix, for each number of rows."""
    count = max(8, int(POOL / (N * K / 2)))
    packed = [
        mx.quantize(mx.random.normal((N, K)).astype(mx.bfloat16), 64, 4)
        for _ in range(count)
    ]
    wide = [mx.dequantize(*p, 64, 4) for p in packed[: max(3, count // 4)]]
    mx.eval(packed, wide)
    rows = []
    for M in ROWS:
        x = mx.random.normal((M, K)).astype(mx.bfloat16)
        mx.eval(x)
        ways: dict[str, Way] = {
            "MLX": lambda i, x=x: mx.quantized_matmul(x, *packed[i]),
            "ours": lambda i, x=x: ops.quantized_matmul(x, *packed[i]),
            "dequantized": lambda i, x=x: x @ mx.dequantize(*packed[i], 64, 4).T,
            "dense": lambda i, x=x: x @ wide[i % len(wide)].T,
            "both": lambda i, x=x: x @ ops.dequantize(*packed[i], 64, 4).T,
        }
        rows.append({"N": N, "K": K, "M": M, "us": times(ways, count)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def experts(name: str, E: int, chosen: int, N: int, K: int) -> list[dict]:
    """Return the times of products that choose among experts."""
    count = max(3, int(POOL / (E * N * K / 2)))
    packed = [
        mx.quantize(mx.random.normal((E, N, K)).astype(mx.bfloat16), 64, 4)
        for _ in range(count)
    ]
    mx.eval(packed)
    rows = []
    for tokens in TOKENS:
        B = tokens * chosen
        sort = B >= 64  # as mlx-lm
        rhs = (mx.arange(B) * 37 % E).astype(mx.uint32)
        rhs = mx.sort(rhs) if sort else rhs
        x = mx.random.normal((B, 1, K)).astype(mx.bfloat16)
        mx.eval(rhs, x)
        given = {"rhs_indices": rhs, "sorted_indices": sort}
        ways: dict[str, Way] = {
            "MLX": lambda i, x=x, g=given: mx.gather_qmm(x, *packed[i], **g),
            "ours": lambda i, x=x, g=given: ops.gather_qmm(x, *packed[i], **g),
        }
        if tokens >= 128:
            ways["dequantized"] = lambda i, x=x, g=given: mx.gather_mm(
                x, mx.dequantize(*packed[i], 64, 4).swapaxes(-1, -2), **g
            )
        rows.append({"name": name, "tokens": tokens, "us": times(ways, count)})
        print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    """Print a line for each measurement; --json keeps them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the measurements here")
    args = parser.parse_args()
    found = [row for shape in SHAPES for row in dense(*shape)]
    found += [row for mixture in MIXTURES for row in experts(*mixture)]
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
