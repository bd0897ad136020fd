"""Measure a model's perplexity on a text, and its distance from a reference.

With a reference, also print the mean KL divergence from it, and how often both models
find the same token likeliest. Each value has its standard error over tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_nibble.acceleration.settings import Settings
from mlx_nibble.cli import activations, consent
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import out, step_progress
from mlx_nibble.cli.hub import hub_errors
from mlx_nibble.cli.models import require_model
from mlx_nibble.evaluation.calibration_text import batches, encode, read_text
from mlx_nibble.evaluation.evaluate import Evaluation, TokenMean, evaluate
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.io.stranger import local_path
from mlx_nibble.lm import load_for_evaluation
from mlx_nibble.pictures.path import require_picture


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("eval")
    add = parser.add_argument
    add("model", nargs="+", metavar="MODEL", help="model folder or Hub name")
    add("--reference", metavar="MODEL", help="model to compare with")
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
    add(
        "--kv-bits",
        type=int,
        choices=[4, 8],
        help="evaluate the model with a quantized KV cache, as generate --kv-bits has",
    )
    add(
        "--kv-group-size",
        type=int,
        choices=[32, 64, 128],
        default=64,
        help="elements of the cache that share a scale; default: 64",
    )
    activations.add_option(parser)
    consent.add_option(parser)
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
    picture = None if args.plot is None else require_picture(args.plot)
    for name in args.model:
        require_model("eval", "MODEL", name)
    text = read_text(args.text)
    reference = None
    if args.reference is not None:
        require_model("eval", "--reference", args.reference)
        with hub_errors("eval", "the reference"):
            reference, _ = load_for_evaluation(
                args.reference, trust_remote_code=args.trust_remote_code
            )
    points = []
    for name in args.model:
        result = _evaluate(args, name, text, reference)
        if args.json:
            print(json.dumps({"model": name, "text": args.text, **asdict(result)}))
        else:
            _print(name, result)
        if result.comparison is not None and picture is not None:
            kl, path = result.comparison.kl, Path(local_path(name))
            bits = read_inventory(path).bits_per_weight
            points.append((path.name, bits, kl.mean, kl.error))
    if picture is not None:
        from mlx_nibble.pictures import losses, style

        points = [losses.Point(*point) for point in points]
        style.save(losses.loss_against_size(points), picture)


def _evaluate(
    args: argparse.Namespace, name: str, text: str, reference: Any
) -> Evaluation:
    with hub_errors("eval"):
        rounded = activations.setting(args)
        # A decoded token is rounded to int8. Many rows at once may be rounded less.
        settings = Settings(rounded, batch_invariant=rounded == "int8")
        model, tokenizer = load_for_evaluation(name, settings, args.trust_remote_code)
    if args.kv_bits:
        from mlx_nibble.lm import with_quantized_cache

        model = with_quantized_cache(model, args.kv_bits, args.kv_group_size)
    tokens = batches(encode(tokenizer, text), args.sequence_length, args.samples)
    with step_progress() as progress:
        return evaluate(
            model, tokens, reference, lambda _, *steps: progress(name, *steps)
        )


def _print(name: str, result: Evaluation) -> None:
    def row(label: str, value: TokenMean, form: str = ".3f") -> None:
        out.print(f"{label:<28}{value.mean:{form}} ± {value.error:{form}}")

    out.print(f"{name}: {result.tokens} tokens", soft_wrap=True)
    row("perplexity", result.perplexity)
    if result.comparison is None or result.reference_perplexity is None:
        return
    row("perplexity, reference", result.reference_perplexity)
    row("increase", result.comparison.increase, ".2%")
    row("KL divergence (nats)", result.comparison.kl, ".5f")
    row("same likeliest token", result.comparison.agreement, ".2%")
