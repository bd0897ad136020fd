"""Times tuned dispatch against every candidate and MLX's operation.

nibble tune
python -m bench.tuned_dispatch --output bench/capsules/tune.json

Measures the products of `nibble tune` once more. The candidate "tuned" is the operation
with the table in the cache folder. With `--merge`, several runs, one matrix or model at
a time, are collected in one file.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.shapes import MODELS
from mlx_nibble.bench.statistics import Estimate, Passes, ratio
from mlx_nibble.cli.console import out, run_progress, table
from mlx_nibble.cli.tune import of_one_matrix, result_of
from mlx_nibble.machine import tuned_table
from mlx_nibble.tune import problems, timing
from mlx_nibble.tune.decide import PASSES

TUNED = "tuned"


def closest(samples: Mapping[str, Passes]) -> tuple[str, Estimate] | None:
    """Return the nearest or better candidate, with its seconds over those of tuned.

    Candidates that were a tenth slower in each of the first passes have too few samples
    and are left out.
    """
    found = {
        name: ratio(passes, samples[TUNED], len(samples) - 1)
        for name, passes in samples.items()
        if name != TUNED and len(passes) >= PASSES[0]
    }
    known = {name: estimate for name, estimate in found.items() if estimate}
    if not known:
        return None
    return min(known.items(), key=lambda item: item[1].value)


def show(made: Capsule) -> None:
    """Print a run and its least ratios."""
    shown = table(
        ["M × N × K", "nearest", "it takes", "95 % of all", "MLX takes"], text_columns=2
    )
    least, least_mlx = float("inf"), float("inf")
    for result in made["results"]:
        samples = {
            name: candidate["passes"]
            for name, candidate in result["candidates"].items()
            if "passes" in candidate
        }
        near = closest(samples)
        if near is None:
            continue
        name, estimate = near
        least = min(least, estimate.value)
        mlx = ratio(samples.get(tuned_table.LEAVE_TO_MLX, ()), samples[TUNED])
        if mlx is not None:
            least_mlx = min(least_mlx, mlx.value)
        why = result["candidates"].get(tuned_table.LEAVE_TO_MLX, {}).get("skipped", "")
        case = result["case"]
        shown.add_row(
            f"{case['rows']} × {case['N']} × {case['K']}",
            name,
            f"{estimate.value:.3f}×",
            f"{estimate.low:.3f}–{estimate.high:.3f}",
            why if mlx is None else f"{mlx.value:.2f}×",
        )
    out.print(shown)
    out.print(
        f"{len(made['results'])} products. The nearest candidate takes at least "
        f"{least:.3f} times what tuned dispatch does; MLX's, where it took turns, "
        f"{least_mlx:.2f} times."
    )


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=problems.ROWS)
    parser.add_argument("--output", type=Path, help="write all samples to a file")
    parser.add_argument("--merge", action="store_true", help="add to the file")
    args = parser.parse_args()
    number, known = tuned_table.in_use()
    shapes = [shape for model in args.model for shape in MODELS[model]]
    wanted = problems.of_shapes(shapes, args.rows, None, 4, 64, None)
    missing = [problem for problem in wanted if problem.key not in known]
    if missing:
        sys.exit(f"{len(missing)} of {len(wanted)} products are not tuned: nibble tune")
    command = ["python", "-m", "bench.tuned_dispatch", *sys.argv[1:]]
    made = capsule.new("tune", command, {"hot": False})
    if args.merge and args.output.exists():
        made["results"] = capsule.read(args.output)["results"]
    done, total = 0, timing.steps(wanted)
    with run_progress() as progress:
        for same in of_one_matrix(wanted):
            contests = timing.measure(
                same,
                lambda what, step, _, done=done: progress(what, done + step, total),
                lambda problem: {TUNED: number},
                lambda samples: TUNED,
            )
            made["results"] += [result_of(p, c) for p, c in contests.items()]
            done += timing.steps(same)
    made["complete"] = True
    if args.output:
        capsule.write(made, args.output)
    show(made)


if __name__ == "__main__":
    main()
