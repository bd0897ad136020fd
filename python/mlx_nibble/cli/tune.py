"""Find the fastest kernels for this machine, and keep them.

Time every way to compute a model's quantized products on this machine, MLX's own
operation among them, and keep the fastest in the cache folder. accelerate(), and every
command that runs a model, then uses it. Ctrl-C keeps the finished products; products in
the table are not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path

from mlx_nibble import _native
from mlx_nibble.bench import capsule, peaks
from mlx_nibble.bench.machine import device
from mlx_nibble.cli import activations, formats, sizes
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, out, run_progress, table
from mlx_nibble.io.stranger import local_path
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import Choice, Key
from mlx_nibble.ops import DTYPES
from mlx_nibble.tune import problems, timing
from mlx_nibble.tune.problems import Problem

_SAMPLE_SECONDS = 5e-3
# Mean passes of a product: 110 products took 240 s (docs/results/tuning.md), 12 passes
# of them 96 s.
_MEAN_PASSES = 30


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("tune")
    add = parser.add_argument
    add(
        "path",
        nargs="?",
        metavar="PATH",
        help="a model folder, whose matrices are measured; default: those of the "
        "models of nibble bench kernels",
    )
    add(
        "--shape",
        nargs="+",
        type=sizes.matrix,
        default=[],
        metavar="N,K",
        help="matrices [N, K] instead",
    )
    add(
        "--rows",
        nargs="+",
        type=int,
        default=problems.ROWS,
        metavar="M",
        help="rows of x, each standing for its class (docs/guide/tune.md); "
        f"default: {' '.join(map(str, problems.ROWS))}",
    )
    formats.add_options(parser)
    add(
        "--dtype",
        choices=DTYPES,
        help="type of x; default: float32 on a CPU, where nibble's commands use it, "
        "and on a GPU the type of the scales",
    )
    activations.add_option(parser, choices=("exact", "int8"))
    add("--again", action="store_true", help="also measure the products in the table")
    add("--output", metavar="FILE", help="also write all samples to FILE")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--dry-run",
        action="store_true",
        help="print the products to measure, and about how long it would take",
    )
    what.add_argument("--show", action="store_true", help="print the table and stop")
    what.add_argument("--clear", action="store_true", help="remove the table and stop")
    add("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, keep, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if min(args.rows) < 1:
        parser.error("--rows must be positive")
    if _native.ext is None:
        raise RuntimeError("[tune] an active mlx-nibble was required.")
    if args.clear:
        _clear(args.json)
        return
    if args.show:
        _print(tuned_table.load(), args.json)
        return
    wanted = _wanted(args)
    known = {} if args.again else tuned_table.of_tune(tuned_table.load())
    missing = [problem for problem in wanted if problem.key not in known]
    if args.dry_run:
        _print_plan(missing, len(wanted) - len(missing), args.json)
        return
    made = capsule.new("tune", ["nibble", "tune", *arguments], {"hot": False})
    sink = None if args.output is None else capsule.require_writable(args.output)
    try:
        _measure(missing, made)
    finally:
        # Finished work is kept, also after Ctrl-C.
        if sink is not None and made["results"]:
            capsule.write(made, sink)
            err.print(f"wrote {sink}", soft_wrap=True)
        keys = {problem.key for problem in wanted}
        stored = tuned_table.load()
        _print({key: stored[key] for key in keys & stored.keys()}, args.json)
    if not args.json:
        err.print(f"The table is {tuned_table.path()}", soft_wrap=True)


def _wanted(args: argparse.Namespace) -> list[Problem]:
    rows = sorted({tuned_table.row_class(m) for m in args.rows})
    # Other devices always compute exactly, so exact products are asked for.
    setting = activations.setting(args) if device() == "cpu" else None
    if args.path is not None:
        return problems.of_model(Path(local_path(args.path)), rows, args.dtype, setting)
    shapes = args.shape or problems.default_shapes()
    (form,) = formats.of(args, "tune", gpu=device() != "cpu")
    own = (args.dtype, form.bits, form.group_size, setting, form.mode)
    return problems.of_shapes(shapes, rows, *own)


def of_one_matrix(wanted: Iterable[Problem]) -> list[list[Problem]]:
    """Return the products, grouped by the matrix that they share."""

    def matrix(p: Problem) -> tuple:
        form = (p.mode, p.bits, p.group_size, p.dtype, p.scale_dtype, p.symmetric)
        return (p.N, p.K, *form)

    return [list(same) for _, same in groupby(wanted, matrix)]


def _measure(wanted: Sequence[Problem], made: capsule.Capsule) -> None:
    """Measure the products, and update the table after each matrix."""
    done, total = 0, sum(map(timing.steps, of_one_matrix(wanted)))
    with run_progress() as progress:
        for same in of_one_matrix(wanted):
            contests = timing.measure(
                same,
                lambda what, step, _, done=done: progress(what, done + step, total),
            )
            found = {p.key: timing.choice(c.samples) for p, c in contests.items()}
            tuned_table.save(found)
            made["results"] += [result_of(p, c) for p, c in contests.items()]
            done += timing.steps(same)
    made["complete"] = True


def result_of(problem: Problem, contest: timing.Contest) -> dict:
    """Return the entry of a product in a capsule."""
    taken = {
        name: {"chain": contest.everyone[name].length, "passes": passes}
        for name, passes in contest.samples.items()
    }
    untaken = {n: why for n, why in contest.given_up.items() if n not in taken}
    return {
        "case": asdict(problem),
        "candidates": taken | {n: {"skipped": why} for n, why in untaken.items()},
        "disturbed": contest.disturbed,
    }


def _clear(as_json: bool) -> None:
    removed = tuned_table.clear()
    if as_json:
        print(json.dumps({"removed": None if removed is None else str(removed)}))
    elif removed is None:
        out.print("There is no table for this device.")
    else:
        out.print(f"Removed {removed}", soft_wrap=True)


def _print_plan(missing: Sequence[Problem], known: int, as_json: bool) -> None:
    """Print the products that would be measured."""
    peak = peaks.measure(missing[0].dtype) if missing else None
    seconds = sum(_seconds(problem, peak) for problem in missing if peak)
    if as_json:
        listed = [{**asdict(p), "candidates": p.candidates()} for p in missing]
        print(
            json.dumps({"seconds": round(seconds), "known": known, "measure": listed})
        )
        return
    shown = table(["M × N × K", "format", "candidates"], text_columns=2)
    for problem in missing:
        shown.add_row(*_labels(problem.key), str(len(problem.candidates())))
    if missing:
        out.print(shown)
    out.print(
        f"{len(missing)} products to measure, which would take about "
        f"{max(seconds / 60, 0.1):.1f} minutes; {known} are in the table."
    )


def _seconds(problem: Problem, peak: peaks.Peaks) -> float:
    """Estimate the seconds that measuring a product takes.

    A candidate reaches about half of the peak, and three stay until one is ahead.
    """
    bound = max(
        problem.bytes_moved / peak.read_bytes_per_second,
        problem.operations / peak.flops_per_second,
    )
    turn = max(_SAMPLE_SECONDS, 2 * bound)
    return _MEAN_PASSES * max(3 * turn, timing.SECONDS)


def _print(choices: Mapping[Key, Choice], as_json: bool) -> None:
    """Print the choices, ordered by matrix and rows."""
    ordered = sorted(
        choices, key=lambda key: (*_labels(key)[1:], key.N, key.K, key.rows)
    )
    if as_json:
        listed = [asdict(key) | asdict(choices[key]) for key in ordered]
        print(json.dumps({"machine": tuned_table.machine(), "choices": listed}))
        return
    head = ["M × N × K", "format", "fastest", "found by", "faster"]
    shown = table(head, text_columns=4)
    for key in ordered:
        choice = choices[key]
        planners = choice.name is None and choice.by == tuned_table.TUNE
        gain = "" if planners else f"{choice.faster:.2f}×"
        shown.add_row(*_labels(key), choice.name or "the planner's", choice.by, gain)
    if ordered:
        out.print(shown)
    names = [choice.name for choice in choices.values()]
    to_mlx = names.count(tuned_table.LEAVE_TO_MLX)
    out.print(
        f"{len(names)} products: {names.count(None)} as the planner chooses, "
        f"{len(names) - names.count(None) - to_mlx} another way, {to_mlx} left to MLX."
    )
    if any(choice.by == tuned_table.DUEL for choice in choices.values()):
        out.print(
            "After a duel, the last column compares the winner with the loser: our "
            "kernel or MLX's operation."
        )


def _labels(key: Key) -> list[str]:
    form = f"{key.bits} bits g{key.group_size} {key.dtype}"
    form = form if key.mode == "affine" else f"{key.mode} {key.dtype}"
    form += f", scales {key.scale_dtype}" if key.mode == "affine" else ""
    form += ", symmetric" if key.symmetric else ""
    form += f", activations {key.activations}" if key.activations else ""
    form += f", {key.experts} experts" if key.experts else ""
    form += ", sorted" if key.sorted else ""
    return [f"{key.rows} × {key.N} × {key.K}", form]
