"""Train a quantized model to predict as its original does.

Scales, biases and norms are trained by the divergence from the original's predictions
on a text; with --codes the codes too. A killed run continues when it is started again.
The result is a model folder of the same size. nibble convert -q --distill quantizes
first.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mlx_nibble.cli import consent
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, filled, out, step_progress
from mlx_nibble.cli.hub import hub_errors
from mlx_nibble.cli.models import require_model
from mlx_nibble.distill.options import CODES, Training
from mlx_nibble.io.stranger import local_path


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("distill")
    add = parser.add_argument
    add("model", metavar="QUANTIZED", help="quantized model folder or Hub name")
    add("out", nargs="?", metavar="OUT", help="folder to make (default: mlx_model)")
    add("--reference", metavar="MODEL", required=True, help="the original model")
    add(
        "--calibration",
        metavar="TEXT",
        help="self: text that the original writes (default); a text, .jsonl or "
        ".parquet file, hub:OWNER/DATASET/PATH, or builtin: Python's documentation",
    )
    add("--samples", type=int, help="sequences; default: those of all steps, to 6400")
    add("--sequence-length", type=int, help="their tokens; default: 512")
    add("--steps", type=int, help="default: 400 on a GPU, 200 on a CPU")
    add("--batch-size", type=int, help="sequences of a step; default: 8, on a CPU 1")
    add(
        "--codes",
        choices=CODES,
        help="train codes too: together, in a dense float32 copy of the model, with 20 "
        "bytes of memory for each weight; or block by block first; default on a GPU: "
        "together if they have room, else blocks; on a CPU: none",
    )
    add(
        "--learning-rate",
        type=float,
        help="most levels that a step moves a code, a scale or a bias; default: 0.003, "
        "0.004 below 4 bits, 0.0015 above",
    )
    add("--seed", type=int, default=0, help="order of the sequences; default: 0")
    consent.add_option(parser)
    add("--json", action="store_true", help="print the result for machines")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, distill, print the result."""
    from mlx_nibble import lm
    from mlx_nibble.distill.distill import distill

    args = _parser().parse_args(arguments)
    training = Training(
        args.steps, args.batch_size, args.codes, args.learning_rate, args.seed
    )
    text = training.text(
        not lm.on_cpu(), args.calibration, args.samples, args.sequence_length
    )
    require_model("distill", "QUANTIZED", args.model)
    require_model("distill", "--reference", args.reference)
    with step_progress() as progress, hub_errors("distill"):
        made = distill(
            local_path(args.model),
            local_path(args.reference),
            local_path(args.out or "mlx_model"),
            training,
            text,
            progress,
            lambda fact: err.print(fact, soft_wrap=True),
            args.trust_remote_code,
        )
    if args.json:
        print(json.dumps({**asdict(made), "path": str(made.path)}))
        return
    rows = [
        (str(row["path"]), f"{row['start']:.4f}", f"{row['trained']:.4f}")
        for row in made.layers
    ]
    title = "Relative error of each layer's output on held-out text"
    out.print(filled(("layer", "before", "after"), rows, title=title))
    out.print(
        f"{made.path}: {made.parameters / 1e6:.1f} M weights, "
        f"{made.nbytes / 1e6:.1f} MB; divergence {made.losses[0]:.5f} before and "
        f"{min(made.losses):.5f} after {made.steps} steps, in nats a token",
        soft_wrap=True,
    )
