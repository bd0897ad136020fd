"""``nibble eval``: how well a model predicts a text, and what quantizing it cost."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from mlx_nibble.cli.console import out, step_progress
from mlx_nibble.lm import load_for_evaluation
from mlx_nibble.model.evaluate import Estimate, Evaluation, evaluate
from mlx_nibble.model.stream import batches
from mlx_nibble.model.text import read_text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble eval",
        description="Perplexity of a model on a text; beside a reference also the "
        "mean KL divergence from it, and how often both hold the same token "
        "likeliest. Each with its standard error over tokens.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="model folder or Hub name")
    add("--reference", metavar="MODEL", help="what to compare with")
    add(
        "--text",
        default="builtin",
        help="a text file, hub:OWNER/DATASET/PATH, or builtin: Python's own "
        "documentation (default)",
    )
    add("--samples", type=int, default=8, help="sequences; default: 8")
    add("--sequence-length", type=int, default=512, help="their tokens; default: 512")
    add("--json", action="store_true", help="print the result for machines")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, evaluate, print."""
    args = _parser().parse_args(arguments)
    text = read_text(args.text)
    model, tokenizer = load_for_evaluation(args.model)
    reference = None
    if args.reference is not None:
        reference, _ = load_for_evaluation(args.reference)
    tokens = batches(tokenizer.encode(text), args.sequence_length, args.samples)
    with step_progress() as progress:
        result = evaluate(
            model, tokens, reference, lambda n: progress("Reading", n, len(tokens))
        )
    if args.json:
        print(json.dumps({"model": args.model, "text": args.text, **asdict(result)}))
        return
    _print(result)


def _print(result: Evaluation) -> None:
    def row(label: str, value: Estimate, form: str = ".3f") -> None:
        out.print(f"{label:<28}{value.mean:{form}} ± {value.error:{form}}")

    out.print(f"{'tokens':<28}{result.tokens}")
    row("perplexity", result.perplexity)
    if result.comparison is None or result.reference_perplexity is None:
        return
    row("perplexity, reference", result.reference_perplexity)
    row("increase", result.comparison.increase, ".2%")
    row("KL divergence (nats)", result.comparison.kl, ".5f")
    row("same likeliest token", result.comparison.agreement, ".2%")
