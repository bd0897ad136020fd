"""Compare random calls with MLX's own form, until a number or a time is reached."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
import traceback
from collections import Counter

import mlx.core as mx
import numpy as np

from tests.differential import layers, products
from tests.differential.compare import fault
from tests.differential.draw import Draw
from tests.support import no_kernel

# Operations and their shares of the cases.
OPERATIONS = {
    products.quantized_matmul: 10,
    products.gather_qmm: 4,
    products.swiglu: 3,
    products.gather_swiglu: 2,
    products.dequantize: 2,
    layers.attention: 4,
    layers.rms_norm: 2,
    layers.rope: 2,
    layers.swiglu: 1,
    layers.logsumexp: 1,
}
POOL = [op for op, share in OPERATIONS.items() for _ in range(share)]
# A GPU has our kernels for products only.
GPU_POOL = [op for op in POOL if op.__module__ == products.__name__]


def try_case(seed: int, index: int) -> tuple[str, str | None]:
    """Return the operation's name and what is wrong, or None."""
    d = Draw(seed, index)
    pool = POOL if mx.default_device() == mx.Device(mx.cpu) else GPU_POOL
    operation = pool[d.rng.integers(len(pool))]
    name = f"{operation.__module__.rpartition('.')[2]}.{operation.__name__}"
    try:
        with np.errstate(all="ignore"):  # NaN and infinity are among the numbers
            wrong = fault(operation(d))
    except Exception as error:
        if no_kernel.is_missing(error):
            return f"{name}, of which MLX has no kernel", None
        wrong = traceback.format_exc().rstrip()
    return name, wrong and f"{name}: {wrong}\n  {d.notes}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.differential")
    parser.add_argument("--seed", type=int, help="default: a new one")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, help="stop after this time")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--keep-going", action="store_true", help="after a failure")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    mx.set_default_device(getattr(mx, args.device))
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    print(f"seed {seed}", flush=True)
    begin, counts, failures = time.monotonic(), Counter(), 0
    for index in range(args.first, args.first + args.cases):
        if args.seconds and time.monotonic() - begin > args.seconds:
            break
        name, wrong = try_case(seed, index)
        counts[name] += 1
        if wrong:
            failures += 1
            print(
                f"FAIL {wrong}\n  again: .venv/bin/python -m tests.differential "
                f"--seed {seed} --first {index} --cases 1",
                flush=True,
            )
            if not args.keep_going:
                break
    took = time.monotonic() - begin
    for name, count in sorted(counts.items()):
        print(f"{count:8} {name}")
    print(f"{counts.total():8} cases in {took:.0f} s, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
