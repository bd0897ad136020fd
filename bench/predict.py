"""Predicts our kernels' times over MLX's on M1 to M4. A model, not a measurement.

    python -m bench.predict             # the tables of docs/results/kernels.md
    python -m bench.predict --mode mxfp4
    python -m bench.predict --published # beside published measurements

A ratio is MLX's predicted time over ours: above 1, ours is predicted to be faster.
bench/time_model.py has the model, bench/kernel_counts.json what it starts from.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import published, time_model
from bench.kernel_counts import form_of
from bench.time_model import CHIPS, Chip, Work
from tests import simt
from tests.simt import plans
from tests.support.oracle import FLOAT_MODES

# The classes of rows that share a verdict on a GPU, with rows of each.
CLASSES = {
    "1": (1,),
    "2–5": (2, 3, 4, 5),
    "6–8": (6, 7, 8),
    "9–16": (9, 12, 16),
    "17–32": (17, 24, 32),
    "33–128": (33, 48, 64, 96, 128),
    "more": (129, 256, 512, 2048),
}
# Matrices [N, K] of Llama 3.1 8B and Llama 3.2 1B.
SHAPES = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
SHAPES += ((2048, 2048), (8192, 2048), (2048, 8192))
# Experts, experts of a token, and matrices of an expert: Qwen3 30B-A3B and Mixtral.
MIXTURES = ((128, 8, (768, 2048)), (128, 8, (2048, 768)))
MIXTURES += ((8, 2, (14336, 4096)), (8, 2, (4096, 14336)))
# The same of gpt-oss, whose experts are mxfp4.
GPT_OSS = (32, 4, (2880, 2880))
TOKENS = {"1 token": 1} | {f"{n} tokens": n for n in (128, 512, 1024, 2048)}


@dataclass(frozen=True)
class Prediction:
    """Predicted microseconds of one product: x of M rows, w [N, K]."""

    chip: str
    case: str  # class of rows, or tokens of a mixture of experts
    M: int
    N: int
    K: int
    kernel: str  # of our best plan
    ours: float
    mlx: float
    chosen: bool  # ours, before a duel

    @property
    def ratio(self) -> float:
        """MLX's time over ours."""
        return self.mlx / self.ours


def prediction(
    chip: Chip,
    case: str,
    M: int,
    p: simt.Problem | simt.GatherProblem,
    works: tuple[list[Work], list[Work]],
) -> Prediction:
    """Return the prediction for our work and MLX's."""
    ours, mlx = (1e6 * time_model.seconds(work, chip) for work in works)
    chosen = not plans.left_to_mlx(p, chip.device)
    kernel = works[0][0].kernel
    return Prediction(chip.name, case, M, p.N, p.K, kernel, ours, mlx, chosen)


def dense(chip: Chip, form: dict[str, Any]) -> Iterator[Prediction]:
    """Yield a prediction for each class, shape and number of rows."""
    for case, rows in CLASSES.items():
        for M, (N, K) in itertools.product(rows, SHAPES):
            p = simt.Problem(M=M, N=N, K=K, **form)
            launches = simt.candidates(p, chip.device)[0]
            works = time_model.ours(p, launches), time_model.mlx(p, chip)
            yield prediction(chip, case, M, p, works)


def experts(chip: Chip, form: dict[str, Any]) -> Iterator[Prediction]:
    """Yield a prediction for each number of tokens and matrix of experts."""
    mixtures = MIXTURES if form["mode"] == "affine" else (*MIXTURES, GPT_OSS)
    for (case, tokens), mixture in itertools.product(TOKENS.items(), mixtures):
        of, top, (N, K) = mixture
        shape = {"B": tokens * top, "N": N, "K": K, "experts": of}
        g = simt.GatherProblem(**shape, sorted=tokens > 1, **form)
        yield prediction(chip, case, g.B, g, time_model.gathered(g, chip))


def every(bits: int = 4, mode: str = "affine") -> list[Prediction]:
    """Return every prediction for a format with counts."""
    form = form_of(mode, bits)
    return [p for c in CHIPS for p in (*dense(c, form), *experts(c, form))]


def cell(found: list[Prediction]) -> str:
    """Return the median ratio of a class, the lowest, and how much is MLX's."""
    ratios = sorted(p.ratio for p in found)
    text = f"{statistics.median(ratios):.2f}"
    if len(ratios) > 1:
        text += f" ({ratios[0]:.2f})"
    left = sum(not p.chosen for p in found)
    if left:
        text += f" {left}/{len(found)}"
    return text


def table(predictions: list[Prediction], cases: list[str]) -> str:
    """Return ratios, a row for each chip."""
    lines = [f"| predicted | {' | '.join(cases)} |", "| --- |" + " ---: |" * len(cases)]
    for chip in CHIPS:
        cells = [
            cell([p for p in predictions if (p.chip, p.case) == (chip.name, case)])
            for case in cases
        ]
        lines.append(f"| {chip.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--mode", choices=("affine", *FLOAT_MODES), default="affine")
    parser.add_argument("--json", type=Path, help="also write each prediction")
    parser.add_argument(
        "--published", action="store_true", help="compare with measurements instead"
    )
    arguments = parser.parse_args()
    if arguments.published:
        print(published.table())
        rows = [asdict(row) | {"error": row.error} for row in published.every()]
    else:
        mode = arguments.mode
        bits = arguments.bits if mode == "affine" else FLOAT_MODES[mode][0]
        predictions = every(bits, mode)
        print(table(predictions, list(CLASSES)), end="\n\n")
        print(table(predictions, list(TOKENS)))
        rows = [asdict(p) | {"ratio": p.ratio} for p in predictions]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
