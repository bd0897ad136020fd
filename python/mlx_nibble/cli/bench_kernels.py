"""Time products: ours, MLX's and the dense product.

Times y = x @ dequantize(w).T, x [M, K], w [N, K]. The candidates take turns, each with
weights that are in no cache. All samples go into a JSON file. Ctrl-C keeps the finished
samples.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict

from mlx_nibble.bench import capsule, kernels
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.bench.kernels import PEERS, KernelOptions, ProductRow
from mlx_nibble.bench.products import ProductCase
from mlx_nibble.bench.shapes import DEFAULT_MODEL, DEFAULT_ROWS, MODELS
from mlx_nibble.cli import formats, sizes
from mlx_nibble.cli.bench_plot import draw, require_file
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, milliseconds, out, run_progress, table, times
from mlx_nibble.ops import DTYPES


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench kernels")
    add_products(parser)
    add = parser.add_argument
    add(
        "--against",
        nargs="*",
        choices=PEERS,
        default=PEERS,
        help="candidates beside ours; default: both",
    )
    add("--null", action="store_true", help="measure ours against itself: the noise")
    add(
        "--seconds",
        type=float,
        default=1.0,
        help="time for each product; a candidate that takes twice as long is left "
        "out; default: 1",
    )
    add("--passes", type=int, default=20, help="passes over all products; default: 20")
    add("--output", metavar="FILE", help="write the samples to FILE")
    add(
        "--plot",
        metavar="FILE",
        help="draw the run as .png or .svg, or as an .html page that can be mailed",
    )
    add("--json", action="store_true", help="print the samples; write no file")
    return parser


def add_products(parser: argparse._ActionsContainer) -> None:
    """Add the options that select products; :func:`cases_of` reads them."""
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        choices=MODELS,
        default=[],
        help=f"take the shapes of these models; default: {DEFAULT_MODEL}",
    )
    add(
        "--shape",
        type=sizes.product,
        action="append",
        default=[],
        metavar="M,N,K",
        help="another shape (repeatable); without M, each M of --rows",
    )
    add(
        "--rows",
        nargs="+",
        type=int,
        default=DEFAULT_ROWS,
        metavar="M",
        help=f"rows of x; default: {' '.join(map(str, DEFAULT_ROWS))}",
    )
    formats.add_options(parser, several=True)
    add("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    add("--hot", action="store_true", help="leave the weights in the cache")


def main(arguments: Sequence[str]) -> None:
    """Parse, measure, write, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if not 0 < args.seconds < math.inf or args.passes < 1 or min(args.rows) < 1:
        parser.error("--seconds, --passes and --rows must be positive")
    cases = cases_of(args)
    for case in cases:
        case.check()
    picture = None if args.plot is None else require_file(args.plot)
    path = None
    if not args.json:
        path = capsule.require_writable(args.output or capsule.default_path("kernels"))
    peers = () if args.null else tuple(args.against)
    settings = KernelOptions(args.hot, args.seconds, args.passes, peers, args.null)
    made = capsule.new(
        "kernels", ["nibble", "bench", "kernels", *arguments], asdict(settings)
    )
    try:
        with run_progress() as progress:
            kernels.run(cases, settings, made, progress)
    finally:
        # Finished work is kept, also after Ctrl-C.
        if args.json:
            json.dump(made, sys.stdout)
        elif path is not None and made["results"]:
            capsule.write(made, path)
            show(made)
            err.print(f"wrote {path}", soft_wrap=True)
        if picture is not None and made["results"] and made["peaks"]:
            draw(made, picture)


def cases_of(args: argparse.Namespace) -> list[ProductCase]:
    """Return the products that a command line names."""
    models = args.model or ([] if args.shape else [DEFAULT_MODEL])
    named = [shape for name in models for shape in MODELS[name]]
    shapes = [(rows, *shape) for shape in named for rows in args.rows]
    for shape in args.shape:
        rows = args.rows if len(shape) == 2 else [shape[0]]
        shapes += [(m, *shape[-2:]) for m in rows]
    cases = [
        ProductCase(*shape, form.bits, form.group_size, dtype, mode=form.mode)
        for form in formats.of(args, "bench")
        for dtype in args.dtype
        for shape in shapes
    ]
    return list(dict.fromkeys(cases))


def show(made: Capsule) -> None:
    """Print a capsule of kernels."""
    if not made["results"] or not made["peaks"]:
        return
    bandwidth = made["peaks"]["read_bytes_per_second"]
    peak = made["peaks"]["flops_per_second"]
    machine = made["machine"]
    out.print(
        f"{machine['cpu']}, {machine['threads']} threads, "
        f"{machine['device'].upper()}, mlx {made['versions']['mlx']}; it read "
        f"{bandwidth / 1e9:.1f} GB/s and multiplied at {peak / 1e9:.0f} GFLOP/s. "
        f"Weights {'hot' if made['settings']['hot'] else 'cold'}.",
        soft_wrap=True,
    )
    header = ["M × N × K", "format", "", "time", "ours faster", "95 %"]
    shown = table([*header, "GB/s", "of reads", "GFLOP/s", "of FMAs"], text_columns=3)
    last = None
    for row in kernels.rows(made):
        case = row.case
        label = [f"{case.rows} × {case.N} × {case.K}"]
        form = f"{case.bits} bits g{case.group_size}"
        label += [f"{form if case.mode == 'affine' else case.mode} {case.dtype}"]
        shown.add_row(
            *(label if case != last else ["", ""]),
            row.name,
            milliseconds(row.seconds.value),
            *_faster(row),
            f"{row.bytes_per_second / 1e9:.1f}",
            f"{row.bytes_per_second / bandwidth:.0%}",
            f"{row.flops_per_second / 1e9:.1f}",
            f"{row.flops_per_second / peak:.0%}",
        )
        last = case
    out.print(shown)
    if made["settings"]["null"]:
        _show_noise(made)
    dropped = sum(result["disturbed"] for result in made["results"])
    if dropped:
        passes = "pass" if dropped == 1 else "passes"
        out.print(f"{dropped} {passes} dropped: other programs were at work.")
    for result in made["results"]:
        for name, candidate in result["candidates"].items():
            if "skipped" in candidate:
                case = kernels.describe(ProductCase(**result["case"]))
                out.print(f"{name} left out of {case}: {candidate['skipped']}")


def _show_noise(made: Capsule) -> None:
    pairs = [
        row.faster
        for row in kernels.rows(made, comparisons=len(made["results"]))
        if row.name != "nibble"
    ]
    holding = sum(1.0 in ratio for ratio in pairs)
    widest = max((ratio.high - ratio.low) / 2 for ratio in pairs)
    out.print(
        f"Noise: {holding} of {len(pairs)} intervals, which hold at 95 % all together, "
        f"contain 1; the widest is ±{widest:.1%}."
    )


def _faster(row: ProductRow) -> list[str]:
    return ["", ""] if row.name == "nibble" else times(row.faster)
