"""Compare two runs or two builds, beyond noise.

Takes two runs of nibble bench, or two builds of mlx-nibble. Builds are measured in
turns, each pass in a new process, which finds smaller changes. A change is reported
if its interval, which holds at 95 % for all cases together, excludes 1. The exit status
is 1 if one of our products became slower.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from mlx_nibble.bench import capsule, in_turns
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.compare import (
    LEAST_CHANGE,
    LEAST_CHANGE_IN_TURNS,
    OURS,
    Comparison,
    Outcome,
    compare,
)
from mlx_nibble.bench.rates import ModelCase, describe
from mlx_nibble.cli.bench_kernels import add_products, cases_of
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, milliseconds, out, run_progress, table


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench compare")
    add = parser.add_argument
    add("before", help="the old run, or the Python of the old build")
    add("after", help="the new run, or the Python of the new build")
    add(
        "--least",
        type=float,
        metavar="PERCENT",
        help="smaller changes are no regression, since processes differ by as much; "
        f"default: {100 * LEAST_CHANGE:g}, for builds in turns "
        f"{100 * LEAST_CHANGE_IN_TURNS:g}",
    )
    add("--all", action="store_true", help="also list the cases that did not change")
    add("--json", action="store_true", help="print the result for machines")
    builds = parser.add_argument_group("of builds")
    add_products(builds)
    builds.add_argument(
        "--passes",
        type=int,
        default=in_turns.PASSES,
        help=f"processes of each build; default: {in_turns.PASSES}",
    )
    builds.add_argument(
        "--output",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="keep the two runs",
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, compare, print; the exit status is 1 on a regression."""
    parser = _parser()
    args = parser.parse_args(arguments)
    before, after = _runs(parser, args, ["nibble", "bench", "compare", *arguments])
    least = None if args.least is None else args.least / 100
    outcome = compare(before, after, least)
    if args.json:
        print(json.dumps(_as_json(outcome)))
    else:
        _print(outcome, args.all)
    if outcome.regressed:
        sys.exit(1)


def _runs(
    parser: argparse.ArgumentParser, args: argparse.Namespace, command: Sequence[str]
) -> tuple[Capsule, Capsule]:
    """Return the two runs, read or measured."""
    pythons = [in_turns.interpreter(path) for path in (args.before, args.after)]
    found = [python for python in pythons if python is not None]
    if len(found) < 2:
        return capsule.read(args.before), capsule.read(args.after)
    if args.passes < 1:
        parser.error("--passes must be positive")
    paths = [capsule.require_writable(path) for path in args.output or ()]
    with run_progress() as progress:
        before, after = in_turns.run(
            found, cases_of(args), args.hot, args.passes, command, progress
        )
    for path, made in zip(paths, (before, after), strict=False):
        capsule.write(made, path)
    return before, after


def _as_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "regressed": outcome.regressed,
        "warnings": outcome.warnings,
        "unmatched": outcome.unmatched,
        **{
            name: [{**asdict(c), "verdict": c.verdict} for c in comparisons]
            for name, comparisons in (
                ("ours", outcome.ours),
                ("others", outcome.others),
            )
        },
    }


def _print(outcome: Outcome, everything: bool) -> None:
    for warning in outcome.warnings:
        err.print(f"warning: {warning}", soft_wrap=True)
    ours = outcome.ours
    changed = [c for c in ours if c.verdict in ("slower", "faster")]
    shown = ours if everything else changed
    if shown:
        header = ["case", "before", "after", "seconds", "95 % of all", ""]
        made = table(header)
        for c in shown:
            made.add_row(*_cells(c))
        out.print(made)
    counts = {
        verdict: sum(c.verdict == verdict for c in ours)
        for verdict in ("slower", "faster", "same", "unknown")
    }
    said = [f"{n} {verdict}" for verdict, n in counts.items() if n]
    out.print(f"Of {len(ours)} cases: {', '.join(said)}.")
    if counts["unknown"]:
        out.print("Unknown: too few passes.")
    if outcome.unmatched:
        out.print(f"{outcome.unmatched} cases are in one run only.")
    factors = [c.change.factor.value for c in outcome.others if c.change]
    if factors:
        middle = 100 * (statistics.median(factors) - 1)
        out.print(
            f"Peers, measured in the same runs, took {middle:+.1f} % (median of "
            f"{len(factors)}): this is the change of the machine."
        )


def _cells(c: Comparison) -> list[str]:
    named = label(c.case) + c.candidate.removeprefix(OURS).replace(" ", ", ", 1)
    cells = [named, milliseconds(c.before), milliseconds(c.after)]
    if c.change is None:
        return [*cells, "", "", c.verdict]
    factor = c.change.factor
    change, low, high = (
        f"{100 * (x - 1):+.1f}" for x in (factor.value, factor.low, factor.high)
    )
    return [*cells, f"{change} %", f"{low} to {high} %", c.verdict]


def label(case: dict[str, Any]) -> str:
    """Return a case of any kind in one line."""
    if "rows" in case:
        return (
            f"{case['rows']} × {case['N']} × {case['K']}, {case['bits']} bits "
            f"g{case['group_size']} {case['dtype']}"
        )
    if case.keys() == {field.name for field in fields(ModelCase)}:
        return describe(ModelCase(**case))
    return ", ".join(f"{key} {value}" for key, value in case.items())
