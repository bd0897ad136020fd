"""Our quantized_matmul against MLX's, on cold weights.

    python -m bench.bench_matmul
    python -m bench.bench_matmul --shape 4096,4096 --rows 1 8 128 --json out.json

Each call takes the next weight matrix of a pool four times the last-level cache, so
that weights come from memory, as they do in a model. `--hot` uses one matrix.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from bench import timing
from bench.shapes import MODELS
from mlx_nibble import __version__, ops

DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


@dataclass(frozen=True)
class Case:
    """One product: x [rows, K] by a quantized w [N, K]."""

    rows: int
    N: int
    K: int
    bits: int
    group_size: int
    dtype: str

    def weight_bytes(self) -> int:
        item = DTYPES[self.dtype].size
        return self.N * (self.K * self.bits // 8 + 2 * item * self.K // self.group_size)


def make_pool(case: Case, hot: bool) -> list[tuple[mx.array, mx.array, mx.array]]:
    wanted = 4 * timing.last_level_cache_bytes()
    count = 1 if hot else max(2, -(-wanted // case.weight_bytes()))
    rng = np.random.default_rng(0)
    groups = (case.N, case.K // case.group_size)
    scales = mx.array(rng.standard_normal(groups) / 2**case.bits)
    pool = []
    for _ in range(count):
        words = rng.integers(
            0, 2**32, (case.N, case.K * case.bits // 32), dtype=np.uint32
        )
        # Adding makes each an array of its own, not a view of one.
        scale = (scales + 0).astype(DTYPES[case.dtype])
        bias = (scales * -(2 ** (case.bits - 1))).astype(DTYPES[case.dtype])
        pool.append((mx.array(words), scale, bias))
    mx.eval(pool)
    return pool


def measure(case: Case, seconds: float, hot: bool) -> dict:
    pool = make_pool(case, hot)
    x = mx.random.normal((case.rows, case.K)).astype(DTYPES[case.dtype])
    mx.eval(x)

    def candidate(op):
        step = timing.rotation(len(pool))

        def call():
            w, scales, biases = pool[step()]
            mx.eval(op(x, w, scales, biases, True, case.group_size, case.bits))

        return call

    samples = timing.interleave(
        {
            "mlx": candidate(mx.quantized_matmul),
            "nibble": candidate(ops.quantized_matmul),
        },
        seconds,
    )
    ratio = timing.ratios(samples["mlx"], samples["nibble"])
    return {
        "case": vars(case),
        "weight_bytes": case.weight_bytes(),
        "seconds": {name: s.seconds for name, s in samples.items()},
        "median": {name: s.median for name, s in samples.items()},
        "ratio": {"median": ratio.median, "quartiles": ratio.quartiles},
        "bytes_per_second": case.weight_bytes() / samples["nibble"].median,
    }


def cases(args: argparse.Namespace) -> list[Case]:
    shapes = [tuple(int(d) for d in s.split(",")) for s in args.shape]
    if not shapes:
        shapes = MODELS[args.model]
    return [
        Case(rows, N, K, args.bits, args.group_size, args.dtype)
        for N, K in shapes
        for rows in args.rows
    ]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bench_matmul",
        description="Our quantized_matmul against MLX's.",
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2-135m")
    parser.add_argument("--shape", nargs="+", default=[], metavar="N,K")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--bits", type=int, default=4, choices=[4, 8])
    parser.add_argument("--group-size", type=int, default=64, choices=[32, 64, 128])
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--hot", action="store_true", help="one matrix, in cache")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="to spend on each product"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write every sample ('-': stdout)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    bandwidth = timing.read_bandwidth()
    rows = [["rows", "N", "K", "MLX", "nibble", "faster", "quartiles", "GB/s", "share"]]
    results = []
    todo = cases(args)
    for i, case in enumerate(todo):
        print(f"\r{i + 1}/{len(todo)} {case}"[:100].ljust(100), end="", file=sys.stderr)
        result = measure(case, args.seconds, args.hot)
        results.append(result)
        low, high = result["ratio"]["quartiles"]
        rows.append(
            [
                str(case.rows),
                str(case.N),
                str(case.K),
                f"{1e3 * result['median']['mlx']:.3f} ms",
                f"{1e3 * result['median']['nibble']:.3f} ms",
                f"{result['ratio']['median']:.2f}x",
                f"{low:.2f}-{high:.2f}",
                f"{result['bytes_per_second'] / 1e9:.1f}",
                f"{result['bytes_per_second'] / bandwidth:.0%}",
            ]
        )
    print("\r".ljust(101) + "\r", end="", file=sys.stderr)
    capsule = {
        "command": ["python", "-m", "bench.bench_matmul", *(argv or sys.argv[1:])],
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "system": platform.platform(),
            "threads": timing.threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "mlx": mx.__version__,
            "mlx_nibble": __version__,
        },
        "device": str(mx.default_device()),
        "read_bandwidth": bandwidth,
        "results": results,
    }
    if args.json == "-":
        json.dump(capsule, sys.stdout)
        return
    print(
        f"{'hot' if args.hot else 'cold'} weights, {args.bits} bits, group "
        f"{args.group_size}, {args.dtype}; all cores read "
        f"{bandwidth / 1e9:.1f} GB/s"
    )
    print(timing.table(rows))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(capsule, f)


if __name__ == "__main__":
    main()
