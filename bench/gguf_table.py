"""Converts GGUF files of each type and architecture, and compares every value.

    python -m bench.gguf_table            # all, in minutes
    python -m bench.gguf_table Q6_K       # types, or parts of names of architectures

The package `gguf` writes tiny random models of mlx-lm. It quantizes them, too, or
llama.cpp's library does where the package cannot. Each file is imported. The values
that MLX dequantizes are compared with those that the package `gguf` dequantizes, and
the logits with mlx-lm's model of these. Without names, the table goes into
docs/results/gguf.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import dequantize_model, load_model

from bench.ggml import quantizer
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.io.atomic import write_text
from tests.support.gguf_families import FAMILIES, Family, widened
from tests.support.gguf_models import Blocks, random_model, write_family

PAGE = Path(__file__).parents[1] / "docs" / "results" / "gguf.md"
BEGIN, END = "<!-- measured: python -m bench.gguf_table -->", "<!-- /measured -->"
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("IQ4_NL", "IQ4_XS", "Q4_K", "Q5_K", "MXFP4", "Q2_K", "Q3_K", "Q6_K"),
)
IDS = mx.array([[3, 77, 20, 5, 131, 9, 250, 8, 60, 61, 62, 63]])
# MLX rounds the product of a scale and a code, and the sum; ggml's formula does not.
_ROUNDED = 2**-22
# Longest sum of products in these models, as a bound of the rounding of logits.
_INPUTS = 768


@dataclass(frozen=True)
class Cell:
    """One conversion.

    Attributes:
        loss: The largest relative error of a matrix, root mean square; 0 if every
            value is that of the file.
        logits: The largest difference of a logit over the largest logit.
        right: Whether the report says the same, and exact values give equal logits.
    """

    loss: float
    logits: float
    right: bool

    def __str__(self) -> str:
        text = "=" if self.loss == 0 else f"{self.loss:.2%}".replace("%", " %")
        return text if self.right else f"**{text}, wrong**"


def convert(family: Family, kind: str, blocks: Blocks, folder: Path) -> Cell:
    """Write one file, import it and compare."""
    size, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]

    def kinds(name: str, shape: tuple[int, ...]) -> str:
        return kind if shape[-1] % size == 0 else "F32"

    model = random_model(family)
    values = write_family(folder / "m.gguf", family, model, kinds, blocks=blocks)
    report = import_gguf(folder / "m.gguf", folder / kind)
    imported, _ = load_model(folder / kind)
    logits = np.array(imported(IDS))
    model.update(tree_unflatten([(k, mx.array(v)) for k, v in values.items()]))
    wanted = np.array(model(IDS))
    off = float(np.abs(logits - wanted).max() / np.abs(wanted).max())
    loss = largest_loss(dequantize_model(imported), values)
    stated = max(report.errors.values(), default=0.0)
    right = abs(loss - stated) <= 1e-3 * stated
    return Cell(loss, off, right and (loss > 0 or off <= _INPUTS * _ROUNDED))


def largest_loss(model: nn.Module, values: dict[str, np.ndarray]) -> float:
    """Return the largest relative error of a tensor; 0 if all are exact."""
    got = dict(tree_flatten(model.parameters()))
    assert got.keys() == values.keys()
    losses = [0.0]
    for path, value in values.items():
        lost = np.array(got[path].astype(mx.float32), np.float64) - value
        allowed = _ROUNDED * (np.abs(value) + np.abs(value).max())
        if (np.abs(lost) > allowed).any():
            losses.append(
                float(np.sqrt(np.square(lost).sum() / np.square(value).sum()))
            )
    return max(losses)


def run(chosen: Callable[[str], bool]) -> dict[str, dict[str, Cell]]:
    """Convert the chosen architectures and types; print each row."""
    blocks = quantizer()
    kinds = [kind for kind in TYPES if chosen(kind)] or TYPES
    rows = {name: {} for name in FAMILIES if chosen(name)}
    for name in rows or (rows := {name: {} for name in FAMILIES}):
        family = widened(FAMILIES[name])
        for kind in kinds:
            with tempfile.TemporaryDirectory() as folder:
                with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints
                    rows[name][kind] = convert(family, kind, blocks, Path(folder))
        print(line(name, rows[name]), flush=True)
    return rows


def line(name: str, row: dict[str, Cell]) -> str:
    return f"| {name} | " + " | ".join(map(str, row.values())) + " |"


def table(rows: dict[str, dict[str, Cell]]) -> str:
    """Return the table, and the counts."""
    (first, *_) = rows.values()
    cells = [cell for row in rows.values() for cell in row.values()]
    exact = [cell for cell in cells if cell.loss == 0]
    off = max((cell.logits for cell in exact), default=0.0)
    wrong = sum(not cell.right for cell in cells)
    return "\n".join(
        [
            f"{len(cells)} conversions: {len(exact)} exact, {len(cells) - len(exact)} "
            f"with a loss, {wrong} wrong.",
            f"Where the values are exact, a logit differs by {off:.0e} of the largest "
            "at most.",
            "",
            f"| architecture | {' | '.join(first)} |",
            f"| --- |{' --- |' * len(first)}",
            *(line(name, row) for name, row in rows.items()),
        ]
    )


def main() -> int:
    """Parse, run, write the page; return 1 if a conversion is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="types, or parts of architectures")
    names = parser.parse_args().names
    mx.disable_compile()  # else each fused expression takes a run of the C++ compiler
    mx.set_default_device(mx.cpu)
    rows = run(lambda name: any(n == name or n in name for n in names))
    if not names:
        body = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
        text = f"{BEGIN}\n\n{table(rows)}\n\n{END}"
        write_text(PAGE, body.sub(lambda _: text, PAGE.read_text()))
    return int(not all(c.right for row in rows.values() for c in row.values()))


if __name__ == "__main__":
    sys.exit(main())
