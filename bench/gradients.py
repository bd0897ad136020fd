"""Predicts the gradients of scales and biases on Metal. A model, not a measurement.

    python -m bench.gradients

MLX computes a dense product d = dy^T @ x in float32, then reduces it to groups. Its
product is assumed to be as fast as our kernel. The difference is its other operations:
casts of x and dy, codes, their product with d, and two sums. bench/time_model.py has
the model of time, bench/kernel_counts.json what our kernel executes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from bench import time_model
from bench.time_model import CHIPS, Chip, Work
from tests import simt
from tests.simt import plans

# Matrices [N, K] of SmolLM2 135M and of Llama 3.1 8B.
SHAPES = ((576, 576), (1536, 576), (4096, 4096), (14336, 4096))
ROWS = (512, 2048)
FORM = {"dtype": "float16", "scale_dtype": "float16", "bits": 4, "group_size": 64}
# d and the products with codes in float32, codes in float32: written, then read.
DENSE_TRAFFIC = 7 * 4
DENSE_KEPT = 3 * 4  # bytes of these for each element of d
LAUNCHES = 7


def ours(p: simt.Problem) -> list[Work]:
    """Return the work of our kernel; a row of x takes the place of a column of K."""
    (launch,) = plans.plan_gradient(p) or ()
    x, y, z = launch.threadgroups
    groups = 2 * 4 * p.N * p.K / p.group_size
    data = time_model.row_bytes(p.M, p.N, p.K) + p.N * p.K * p.bits / 8 + groups
    return [Work(launch.kernel, x * y * z, p.M, data)]


def dense(p: simt.Problem) -> list[Work]:
    """Return the work of a dense product and its reduction."""
    (product,) = ours(p)
    casts = 3 * time_model.row_bytes(p.M, p.N, p.K)
    moved = DENSE_TRAFFIC * p.N * p.K + casts
    rest = [Work(time_model.UNCOUNTED[0], 1, 0, moved / (LAUNCHES - 1))]
    return [
        Work(product.kernel, product.groups, product.K, 0.0),
        *rest * (LAUNCHES - 1),
    ]


def rows(chip: Chip) -> Iterator[str]:
    for N, K in SHAPES:
        for M in ROWS:
            p = simt.Problem(M=M, N=N, K=K, **FORM)
            mine, theirs = (time_model.seconds(f(p), chip) for f in (ours, dense))
            yield (
                f"| {chip.name} | {N} × {K} | {M} | {1e3 * mine:.2f} | "
                f"{1e3 * theirs:.2f} | {theirs / mine:.2f} | "
                f"{DENSE_KEPT * N * K / 1e6:.0f} |"
            )


def table() -> str:
    """Return the times of a matrix for three chips."""
    head = "| chip | w | rows | ours, ms | dense, ms | ratio | dense's arrays, MB |"
    chips = [chip for chip in CHIPS if chip.name in ("M1", "M3 Pro", "M4 Max")]
    lines = [head, "| --- | --- |" + " ---: |" * 5]
    return "\n".join([*lines, *(row for chip in chips for row in rows(chip))])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.parse_args()
    print(table())


if __name__ == "__main__":
    main()
