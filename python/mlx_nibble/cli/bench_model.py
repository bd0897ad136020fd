"""Time a model: our tokens per second, and those of mlx-lm alone.

Measures how fast a model reads prompts and answers, the time to its first token, and
the peak memory. Ours and mlx-lm alone take turns in one process, with one set of
weights. All samples go into a JSON file. Ctrl-C keeps the finished samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_nibble.bench import capsule
from mlx_nibble.bench.capsule import Capsule
from mlx_nibble.cli import consent
from mlx_nibble.cli.bench_plot import draw, require_file
from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import err, immediate_interrupt, run_progress
from mlx_nibble.cli.hub import hub_errors
from mlx_nibble.cli.models import require_model


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("bench model")
    add = parser.add_argument
    add("model", metavar="PATH", help="model folder or Hub name")
    add(
        "--batch",
        nargs="+",
        type=int,
        default=[1, 8, 32],
        metavar="N",
        help="sequences at once, by mlx-lm's BatchGenerator; default: 1 8 32",
    )
    add(
        "--context",
        nargs="+",
        type=int,
        default=[128, 512],
        metavar="TOKENS",
        help="tokens of each prompt; default: 128 512",
    )
    add(
        "--draft-model",
        metavar="PATH",
        help="also decode speculatively, one sequence, with this draft model",
    )
    add(
        "--num-draft-tokens",
        type=int,
        default=3,
        metavar="N",
        help="tokens to draft at a time; default: 3",
    )
    add(
        "--against",
        nargs="*",
        choices=("mlx",),
        default=("mlx",),
        help="candidates beside ours; default: mlx; none, if nothing follows",
    )
    add(
        "--activations",
        choices=("exact", "int8"),
        default="exact",
        help="int8: also measure with 8-bit activations",
    )
    add(
        "--batch-invariant",
        action="store_true",
        help="also measure with rows that do not depend on the number of rows",
    )
    add(
        "--max-tokens",
        "-m",
        type=int,
        default=32,
        metavar="N",
        help="maximum of timed tokens of an answer; default: 32",
    )
    add(
        "--prefill-step-size",
        type=int,
        default=2048,
        metavar="N",
        help="tokens of a prompt to process at a time; default: 2048",
    )
    add(
        "--seconds",
        type=float,
        default=10.0,
        help="time for each case, and the same once more for MLX: where it is slower, "
        "it takes part in fewer passes or is left out; default: 10",
    )
    add("--passes", type=int, default=6, help="turns of each; default: 6")
    consent.add_option(parser)
    add("--output", metavar="FILE", help="write the samples to FILE")
    add(
        "--plot",
        metavar="FILE",
        help="draw the run as .png or .svg, or as an .html page that can be mailed",
    )
    add("--json", action="store_true", help="print the samples; write no file")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, load, measure, write, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    _require_sane(parser, args)
    require_model("bench", "PATH", args.model)
    if args.draft_model is not None:
        require_model("bench", "--draft-model", args.draft_model)
    picture = None if args.plot is None else require_file(args.plot)
    path = None
    if not args.json:
        path = capsule.require_writable(args.output or capsule.default_path("model"))
    made = capsule.new("model", ["nibble", "bench", "model", *arguments], {})
    keeper = _Keeper(made, path, picture)
    # MLX may read a long prompt for ten seconds, in which Python does not see Ctrl-C:
    # another thread then keeps the finished samples.
    with immediate_interrupt(keeper.keep):
        try:
            _measure(args, made)
        finally:
            keeper.keep()


def _require_sane(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if min(args.seconds, args.passes, args.max_tokens, args.prefill_step_size) <= 0:
        parser.error(
            "--seconds, --passes, --max-tokens and --prefill-step-size must be positive"
        )
    if min(*args.batch, args.num_draft_tokens) < 1:
        parser.error("--batch and --num-draft-tokens must be at least 1")
    if min(args.context) < 2:
        parser.error("--context must be at least 2")


def _measure(args: argparse.Namespace, made: Capsule) -> None:
    # mlx-lm takes a second to import: --help and errors do not wait for it.
    with err.status("Loading the model"), hub_errors("bench"):
        from mlx_nibble import lm
        from mlx_nibble.bench import generation, model, subject
        from mlx_nibble.evaluation.calibration_text import BUILT_IN, encode, read_text

        trust = lm.consent(args.trust_remote_code)
        loaded, tokenizer, *_ = lm.load_as_it_is(args.model, **trust)
        models = [loaded]
        if args.draft_model is not None:
            with hub_errors("bench", "the draft model"):
                draft, other, *_ = lm.load_as_it_is(args.draft_model, **trust)
            if other.vocab_size != tokenizer.vocab_size:
                raise ValueError(
                    "[bench] the draft model must have the model's vocabulary of "
                    f"{tokenizer.vocab_size} tokens but got {other.vocab_size}."
                )
            models.append(draft)
        text = encode(tokenizer, read_text(BUILT_IN)[: _characters(args)])
    configurations = [subject.OURS]
    configurations += [subject.INT8] if args.activations == "int8" else []
    configurations += [subject.INVARIANT] if args.batch_invariant else []
    configurations += [subject.STOCK] if args.against else []
    modes = [
        (generation.plain() if n == 1 else generation.batched(), n)
        for n in dict.fromkeys(args.batch)
    ]
    if args.draft_model is not None:
        modes.append((generation.speculative(args.num_draft_tokens), 1))
    settings = model.ModelOptions(
        args.seconds, args.passes, args.max_tokens, args.prefill_step_size
    )
    made["settings"].update(_settings(args), **asdict(settings))
    groups = [
        (*mode, context) for context in dict.fromkeys(args.context) for mode in modes
    ]
    with run_progress() as progress, subject.Subject(models) as changing:
        model.run(
            changing,
            configurations,
            groups,
            text,
            settings,
            made,
            progress,
        )


def _characters(args: argparse.Namespace) -> int:
    """Return the number of characters to tokenize; a token rarely has more than 8."""
    return 8 * (max(args.context) + 64 * max(args.batch))


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    # Names without folders: paths are private.
    draft = args.draft_model and Path(args.draft_model).name
    return {
        "model": Path(args.model).name,
        "draft_model": draft,
        "num_draft_tokens": args.num_draft_tokens if draft else None,
    }


class _Keeper:
    """Writes, prints and draws the samples once, from either thread."""

    def __init__(self, made: Capsule, path: Path | None, picture: Path | None) -> None:
        self._made, self._path, self._picture = made, path, picture
        self._lock = threading.Lock()
        self._done = False

    def keep(self) -> None:
        from mlx_nibble.cli.bench_model_table import show

        with self._lock:
            if self._done:
                return
            self._done = True
            made = self._made
            made["results"] = [r for r in made["results"] if _measured(r)]
            if self._path is None:
                json.dump(made, sys.stdout)
            elif made["results"]:
                capsule.write(made, self._path)
                show(made)
                err.print(f"wrote {self._path}", soft_wrap=True)
            if self._picture is not None and made["results"]:
                draw(made, self._picture)
            sys.stdout.flush()


def _measured(result: dict[str, Any]) -> bool:
    return any(any(c.get("passes", ())) for c in result["candidates"].values())
