"""Stock MLX and `accelerate()` in pairs of turns, for the studies of CUDA's models.

The processor of a virtual machine changes its speed within seconds, and at batch 1 it
decides. So a turn is short, both take it in pairs (ABBA), and the result is the ratio
of each pair: its median and quartiles.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache

import mlx_nibble
from bench import timing

BATCHES = (1, 8, 32)
LEAST_PAIRS = 10
STEPS = 32  # of decoding in a turn; a third of them for larger batches
WARM_UP, TOKENS = 20, 60
PARTS = ("building", "encoding", "a token")

Turn = Callable[[Any], float]
"""Returns the seconds of one unit of work with a model."""


class Pair:
    """A model with stock MLX, and an accelerated one of the same weights."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        """Make both; `make` returns a model that nothing has evaluated."""
        self.name = name
        self.stock, self.ours = make(), make()
        mx.eval(self.stock.parameters())
        self.ours.update(self.stock.parameters())
        self.report = mlx_nibble.accelerate(self.ours)

    def compare(self, what: str, units: int, turn: Turn, seconds: float) -> dict:
        """Return and print rates and ratios; a turn's seconds are those of `units`."""
        calls = {"stock": self.stock, "ours": self.ours}
        taken = timing.interleave(
            {name: (lambda made=made: turn(made)) for name, made in calls.items()},
            seconds,
            least=LEAST_PAIRS,
            most=1000,
        )
        times = {name: np.array(each) for name, each in taken.items()}
        row = {"model": self.name, "what": what, "pairs": len(times["ours"])}
        row |= {name: quartiles(units / each) for name, each in times.items()}
        row["ratio"] = quartiles(times["stock"] / times["ours"])
        row["least"] = float((times["stock"] / times["ours"]).min())
        print(line(row), flush=True)
        return row


def quartiles(values: np.ndarray) -> list[float]:
    """Return the median and the two quartiles."""
    return [float(v) for v in np.quantile(values, (0.5, 0.25, 0.75))]


def line(row: dict) -> str:
    """Return a row of a table: rates, then the ratio, each with its quartiles."""

    def cell(name: str, digits: int) -> str:
        middle, low, high = (f"{v:.{digits}f}" for v in row[name])
        return f"{middle} ({low}-{high})"

    cells = [f"{row['model']}, {row['what']}", cell("stock", 0), cell("ours", 0)]
    return " | ".join(["", *cells, cell("ratio", 2), str(row["pairs"]), ""]).strip()


def prompts(rows: int, length: int) -> mx.array:
    """Return different tokens in each row."""
    numbers = mx.arange(rows)[:, None] * 37 + mx.arange(length) * 11
    return numbers % 1000


def stepping(made: Any) -> Callable[[mx.array], mx.array]:
    """Return a function from tokens to the next ones, with a cache of its own."""
    keys = cache.make_prompt_cache(made)
    return lambda tokens: mx.argmax(made(tokens, cache=keys)[:, -1:], -1)


def decode(made: Any, batch: int) -> float:
    """Return the seconds of a step of greedy decoding, after a few steps."""
    step = stepping(made)
    tokens = step(prompts(batch, 16))
    for _ in range(4):
        tokens = step(tokens)
        mx.eval(tokens)
    begin = time.perf_counter()
    steps = STEPS if batch == 1 else STEPS // 3
    for _ in range(steps):
        following = step(tokens)
        mx.async_eval(following)
        tokens.tolist()
        tokens = following
    mx.eval(tokens)
    return (time.perf_counter() - begin) / steps


def read(made: Any, length: int) -> float:
    """Return the seconds of a prompt."""
    begin = time.perf_counter()
    mx.eval(made(prompts(1, length), cache=cache.make_prompt_cache(made))[:, -1:])
    return time.perf_counter() - begin


def parts(made: Any) -> dict[str, float]:
    """Return the parts of a token's time at batch 1: medians, milliseconds."""
    step = stepping(made)
    tokens = step(prompts(1, 16))
    times = []
    for _ in range(WARM_UP + TOKENS):
        begin = time.perf_counter()
        following = step(tokens)
        built = time.perf_counter()
        mx.async_eval(following)
        encoded = time.perf_counter()
        tokens.tolist()
        tokens = following
        times.append((built - begin, encoded - built, time.perf_counter() - begin))
    medians = 1000 * np.median(times[WARM_UP:], axis=0)
    return dict(zip(PARTS, medians.tolist(), strict=True))


def compare_parts(pair: Pair) -> dict:
    """Return and print what a token's time at batch 1 consists of, in turns."""
    found: dict[str, list[dict[str, float]]] = {"stock": [], "ours": []}
    for turn in range(LEAST_PAIRS):
        order = ("stock", "ours") if turn % 2 else ("ours", "stock")
        for name in order:
            found[name].append(parts(getattr(pair, name)))
    row: dict[str, Any] = {"model": pair.name, "what": "parts"}
    for name, each in found.items():
        row[name] = {p: quartiles(np.array([e[p] for e in each])) for p in PARTS}
        cells = [f"{p} {v:.2f} ({a:.2f}-{b:.2f})" for p, (v, a, b) in row[name].items()]
        print(f"{pair.name}, {name}: {', '.join(cells)} ms", flush=True)
    return row


def compare_all(pair: Pair, lengths: tuple[int, ...], seconds: float) -> list[dict]:
    """Compare the parts of a token, decoding of each batch, prompts of each length."""
    rows = [compare_parts(pair)]
    for batch in BATCHES:
        rows.append(
            pair.compare(
                f"batch {batch}", batch, lambda made, b=batch: decode(made, b), seconds
            )
        )
    for length in lengths:
        rows.append(
            pair.compare(
                f"prompt of {length}",
                length,
                lambda made, n=length: read(made, n),
                seconds,
            )
        )
    return rows


def arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments: those of the parser, and those that the studies share."""
    parser.add_argument("--seconds", type=float, default=8, help="of a comparison")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    return parser.parse_args()


def keep(rows: list[dict], path: Path | None) -> None:
    """Write the measurements so far, if a file is named."""
    if path:
        path.write_text(json.dumps(rows, indent=1) + "\n")
