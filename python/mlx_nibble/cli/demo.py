"""Fetch a small model, answer a question, and compare with stock MLX.

Fetch SmolLM2-135M-Instruct (93 MB, once), import it as a 4-bit MLX model, let it answer
a question, and compare stock MLX with nibble. It takes one to two minutes, most of them
stock MLX's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mlx_nibble.cli import activations, consent
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import (
    byte_progress,
    countdown,
    err,
    immediate_interrupt,
    out,
)
from mlx_nibble.cli.models import gguf_imported

if TYPE_CHECKING:
    from mlx_nibble.bench.statistics import Estimate

_QUESTION = "Explain in two sentences why the sky is blue."
_PROMPT_TOKENS = 128
_DECODE_TOKENS = 24
# Stock MLX takes four seconds for these tokens.
_LOGITS_TOKENS = 32


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("demo")
    parser.add_argument(
        "--model",
        metavar="PATH",
        help="another model: an MLX folder, or a GGUF file",
    )
    parser.add_argument("--prompt", "-p", default=_QUESTION, help="the question")
    parser.add_argument(
        "--max-tokens", "-m", type=int, default=256, help="length of the answer"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="timed runs of each (default: 3)"
    )
    activations.add_option(parser)
    consent.add_option(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, fetch, answer, compare, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.max_tokens < 1 or args.rounds < 1:
        parser.error("--max-tokens and --rounds must be at least 1")
    folder = _model_folder(args.model)
    with immediate_interrupt():
        made = _run(folder, args, arguments)
    if args.json:
        print(json.dumps(made, indent=2))
    else:
        _print_table(made)


def _model_folder(path: str | None) -> Path:
    from mlx_nibble.conversion.demo_model import smollm2

    if path is None:
        with byte_progress() as progress:
            return smollm2(progress)
    if folder := gguf_imported(path):
        return Path(folder)
    if Path(path).is_dir():
        return Path(path)
    raise ValueError(f"[demo] --model {path!r} does not exist.")


def _run(
    folder: Path, args: argparse.Namespace, arguments: Sequence[str]
) -> dict[str, Any]:
    """Answer and compare; return a capsule."""
    # mlx-lm takes a second to import: --help and errors do not wait for it.
    from mlx_nibble import lm
    from mlx_nibble.bench import capsule, side_by_side

    with err.status("Loading the model"):
        setting = activations.setting(args)
        trust = lm.consent(args.trust_remote_code)
        ours, tokenizer = lm.load(str(folder), activations=setting, **trust)
        stock, _ = lm.load_stock(str(folder), **trust)
    messages = [{"role": "user", "content": args.prompt}]
    question = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    steps = lm.stream_generate(ours, tokenizer, question, max_tokens=args.max_tokens)
    answer = _show(args.prompt, (step.text for step in steps), quiet=args.json)
    with countdown() as progress:
        results, extremes = side_by_side.compare(
            str(folder),
            {"mlx": stock, "nibble": ours},
            tokenizer.encode(side_by_side.TEXT)[:_PROMPT_TOKENS],
            _DECODE_TOKENS,
            args.rounds,
            _LOGITS_TOKENS,
            progress,
        )
    settings = {
        "model": folder.name,
        "prompt": args.prompt,
        "answer": answer,
        "rounds": args.rounds,
        "decode_tokens": _DECODE_TOKENS,
        "logits_range": extremes,
    }
    made = capsule.new("model", ["nibble", "demo", *arguments], settings)
    return made | {"complete": True, "results": results}


def _show(question: str, parts: Iterable[str], quiet: bool) -> str:
    """Print an answer as it comes; return all of it."""
    if quiet:
        return "".join(parts)
    out.print()
    out.print(question, style="bold")
    out.print()
    answer = ""
    for part in parts:
        print(part, end="", flush=True)
        answer += part
    print("\n")
    return answer


def _print_table(made: dict[str, Any]) -> None:
    from mlx_nibble.bench.side_by_side import tokens_per_second

    settings, versions = made["settings"], made["versions"]
    prompt, decode = (result["candidates"] for result in made["results"])
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("stock MLX", "nibble", "ratio"):
        table.add_column(heading, justify="right")
    read = made["results"][0]["case"]["context"]
    for label, candidates in (
        (f"prompt, {read} tokens: tokens/s", prompt),
        (f"decode, {settings['decode_tokens']} tokens: tokens/s", decode),
    ):
        stock, ours = (tokens_per_second(candidates[n]) for n in ("mlx", "nibble"))
        ratio = ours.value / stock.value
        table.add_row(label, _rate(stock), _rate(ours), f"{ratio:.1f}×")
    sides = [prompt["mlx"], prompt["nibble"]]
    for label, key in (
        ("weights, MB", "weight_bytes"),
        ("working memory at its peak, MB", "working_bytes"),
    ):
        ratio = sides[1][key] / max(sides[0][key], 1)
        cells = [f"{side[key] / 1e6:.1f}" for side in sides]
        table.add_row(label, *cells, f"{ratio:.2f}×")
    logits = ""
    if settings["logits_range"] is not None:
        cells = [f"{side['largest_logit_difference']:.1e}" for side in sides]
        table.add_row("largest difference of logits", *cells, "")
        low, high = settings["logits_range"]
        logits = (
            f" Logits, from {low:.0f} to {high:.0f}, are compared with those of the "
            "dequantized model, computed in float64."
        )
    out.print(table)
    alike = decode["mlx"]["tokens"] == decode["nibble"]["tokens"]
    machine = made["machine"]
    out.print()
    out.print(
        f"Median (lowest to highest) of {settings['rounds']} interleaved runs of "
        f"{settings['model']} on the {machine['device'].upper()}: {machine['cpu']}, "
        f"{machine['cores']} cores, mlx {versions['mlx']}. Both generated "
        f"{'the same' if alike else 'different'} {settings['decode_tokens']} "
        f"tokens.{logits}",
        soft_wrap=not out.is_terminal,
    )


def _rate(summary: Estimate) -> str:
    return f"{summary.value:.1f} ({summary.low:.1f}–{summary.high:.1f})"
