"""``nibble eval``: how well a model predicts a text, and what quantizing it cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_nibble.cli import activations
from mlx_nibble.cli.console import out, step_progress
from mlx_nibble.cli.models import hub_errors, require_model
from mlx_nibble.evaluation import plot
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.evaluation.evaluate import Estimate, Evaluation, evaluate
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.lm import load_for_evaluation


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble eval",
        description="Perplexity of a model on a text; beside a reference also the "
        "mean KL divergence from it, and how often both hold the same token "
        "likeliest. Each with its standard error over tokens.",
    )
    add = parser.add_argument
    add("model", nargs="+", metavar="MODEL", help="model folder or Hub name")
    add("--reference", metavar="MODEL", help="what to compare with")
    add(
        "--text",
        default="builtin",
        help="a text, .jsonl or .parquet file, hub:OWNER/DATASET/PATH, or builtin: "
        "Python's own documentation (default)",
    )
    add("--samples", type=int, default=8, help="sequences; default: 8")
    add("--sequence-length", type=int, default=512, help="their tokens; default: 512")
    add(
        "--plot",
        metavar="FILE",
        help="draw the divergence of each model folder over its size, as .png or .svg",
    )
    activations.add_option(parser)
    add("--json", action="store_true", help="print the result for machines")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, evaluate, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.samples < 1:
        parser.error("--samples must be at least 1")
    if args.sequence_length < 2:
        parser.error("--sequence-length must be at least 2: the first is not predicted")
    if args.plot is not None and args.reference is None:
        parser.error("--plot needs --reference: it draws the distance from it")
    picture = None if args.plot is None else plot.require_picture(args.plot)
    for name in args.model:
        require_model("eval", "MODEL", name)
    text = read_text(args.text)
    reference = None
    if args.reference is not None:
        require_model("eval", "--reference", args.reference)
        with hub_errors("eval", "the reference"):
            reference, _ = load_for_evaluation(args.reference)
    points = []
    for name in args.model:
        result = _evaluate(args, name, text, reference)
        if args.json:
            print(json.dumps({"model": name, "text": args.text, **asdict(result)}))
        else:
            _print(name, result)
        if result.comparison is not None and picture is not None:
            kl, path = result.comparison.kl, Path(name)
            bits = read_inventory(path).bits_per_weight
            points.append(plot.Point(path.name, bits, kl.mean, kl.error))
    if picture is not None:
        plot.loss_against_size(points, picture)


def _evaluate(
    args: argparse.Namespace, name: str, text: str, reference: Any
) -> Evaluation:
    with hub_errors("eval"):
        model, tokenizer = load_for_evaluation(name, activations.setting(args))
    tokens = batches(encode(tokenizer, text), args.sequence_length, args.samples)
    with step_progress() as progress:
        return evaluate(
            model, tokens, reference, lambda n: progress(name, n, len(tokens))
        )


def _print(name: str, result: Evaluation) -> None:
    def row(label: str, value: Estimate, form: str = ".3f") -> None:
        out.print(f"{label:<28}{value.mean:{form}} ± {value.error:{form}}")

    out.print(f"{name}: {result.tokens} tokens", soft_wrap=True)
    row("perplexity", result.perplexity)
    if result.comparison is None or result.reference_perplexity is None:
        return
    row("perplexity, reference", result.reference_perplexity)
    row("increase", result.comparison.increase, ".2%")
    row("KL divergence (nats)", result.comparison.kl, ".5f")
    row("same likeliest token", result.comparison.agreement, ".2%")
