"""Records builds in turns, one of them a tenth slower, as data for tests.

python -m bench.planted_slowdown OUT.json --tries 2

A try is several passes of three builds in turns, each pass in new processes. "a" and
"b" are the same build. "slow" does a tenth more products in each sample; if a sample
has fewer than ten, one more product of a tenth of the rows of w.
tests/unit/bench/test_bench_in_turns.py compares a with b, and a with slow. New tries
are added to OUT.
"""

from __future__ import annotations

import argparse
import json
import stat
import sys
import tempfile
from pathlib import Path

from mlx_nibble.bench import in_turns, products, turn
from mlx_nibble.bench.products import ProductCase

BUILDS = ("a", "b", "slow")
CASES = (
    ProductCase(1, 4096, 4096, 4, 64, "float32"),
    ProductCase(8, 1536, 576, 4, 64, "float32"),
)


def plant() -> None:
    """Make every sample do a tenth more work than it reports."""
    stock = products.chain

    def chain(case, product, pool):
        whole = stock(case, product, pool)
        part = stock(case, lambda x, *w: product(x, *_tenth(*w)), pool)

        def run(times: int) -> None:
            if times >= 10:
                whole(times + round(times / 10))
                return
            whole(times)
            part(times)

        return run

    products.chain = chain


def _tenth(*weights):
    rows = weights[0].shape[0] // 10
    return (a[:rows] for a in weights)


def python_of(build: str, folder: Path) -> Path:
    """Return a program that :mod:`in_turns` takes for the Python of a build."""
    path = folder / build
    # Without "-m mlx_nibble.bench.turn".
    command = f'exec "{sys.executable}" "{Path(__file__).absolute()}" {build}'
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def record(passes: int, folder: Path) -> list[dict[str, list[list[float]]]]:
    """Return each product's samples by build, in passes, in microseconds."""
    pythons = [python_of(build, folder) for build in BUILDS]
    made = in_turns.run(pythons, CASES, False, passes, [], lambda *step: None)
    results = zip(*(capsule["results"] for capsule in made), strict=True)
    return [
        {
            build: [
                [float(f"{1e6 * s:.4g}") for s in taken]
                for taken in result["candidates"]["nibble"]["passes"]
            ]
            for build, result in zip(BUILDS, builds, strict=True)
        }
        for builds in results
    ]


def main() -> None:
    """Add tries to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--tries", type=int, default=1)
    parser.add_argument("--passes", type=int, default=16)
    args = parser.parse_args()
    tries = json.loads(args.output.read_text()) if args.output.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(args.tries):
            tries.append(record(args.passes, Path(folder)))
            args.output.write_text(json.dumps(tries) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["slow"]:
        plant()
    if sys.argv[1:] and sys.argv[1] in BUILDS:
        turn.main()
    else:
        main()
