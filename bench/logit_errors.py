"""Measures the errors of the logits of whole models, ours and stock MLX's.

    python -m bench.logit_errors    # prints the table of docs/results/numerics.md

The reference is the float64 evaluation of the same dequantized weights, for tiny random
models of each family. No time is measured. Prints geometric means over models and
prompts, with standard errors, on the default device.
"""

from __future__ import annotations

import argparse

import mlx.core as mx
import numpy as np

from tests.support import families

DTYPES = (mx.float32, mx.bfloat16)
SEEDS = range(12)  # for models and prompts


def number(value: float) -> str:
    return f"{value:.3f}" if value >= 1e-3 else f"{value:.1e}".replace("e-0", "e-")


def cells(errors: list[tuple[float, float]]) -> list[str]:
    """Return MLX's mean error and our ratio to it, from pairs of errors."""
    stock, ours = np.log(errors).T
    ratios = ours - stock
    mean = np.exp(np.mean(ratios))
    off = mean * np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    return [number(np.exp(np.mean(stock))), f"{mean:.2f} ± {off:.2f}"]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    heading = ["family"]
    for dtype in DTYPES:
        heading += [f"{str(dtype)[9:]}: MLX's error", "ours / MLX's"]
    print("|", " | ".join(heading), "|")
    print("|", " | ".join(["---"] * len(heading)), "|")
    for family in families.FAMILIES:
        row = [family]
        for dtype in DTYPES:
            row += cells([families.logit_errors(family, dtype, s) for s in SEEDS])
        print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
