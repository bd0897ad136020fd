"""Converts GGUF files of each type and architecture, and compares every value.

    python -m bench.gguf_table            # all, in minutes
    python -m bench.gguf_table olmo2      # parts of names of architectures, again

The package `gguf` writes tiny random models of mlx-lm. It quantizes them, too, or
llama.cpp's library does where the package cannot. Each file is imported. The values
that MLX dequantizes are compared with those that the package `gguf` dequantizes, and
the logits with mlx-lm's model of these. Results are kept in
bench/capsules/gguf_table.json, one architecture after another, so a run that was
stopped goes on. The table goes into docs/results/gguf.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import load_model

from bench.ggml import quantizer
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.io.atomic import write_text
from tests.support.gguf_families import FAMILIES, Family, widened
from tests.support.gguf_models import Blocks, random_model, write_family

ROOT = Path(__file__).parents[1]
CAPSULE = ROOT / "bench" / "capsules" / "gguf_table.json"
PAGE = ROOT / "docs" / "results" / "gguf.md"
BEGIN, END = "<!-- measured: python -m bench.gguf_table -->", "<!-- /measured -->"
TYPES = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("IQ4_NL", "IQ4_XS", "Q4_K", "Q5_K", "MXFP4", "Q2_K", "Q3_K", "Q6_K"),
)
IDS = mx.array([[3, 77, 20, 5, 131, 9, 250, 8, 60, 61, 62, 63]])
# MLX rounds the product of a scale and a code, and the sum; ggml's formula does not.
_ROUNDED = 2**-22
# Rounding alone differs by less. A tensor in a wrong place or order, by far more.
_LOGITS = 2**-10
# MLX looks rows of mxfp4 up in bfloat16, and OLMo 2 multiplies them without a norm.
_LOGITS_OF_BFLOAT16 = 2**-7


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
    loss = largest_loss(dense(imported), values)
    stated = max(report.errors.values(), default=0.0)
    right = abs(loss - stated) <= 1e-3 * stated
    allowed = _LOGITS_OF_BFLOAT16 if kind == "MXFP4" else _LOGITS
    return Cell(loss, off, right and (loss > 0 or off <= allowed))


def dense(model: nn.Module) -> dict[str, np.ndarray]:
    """Return the values of all parameters, as MLX dequantizes them."""
    values = {k: np.array(v) for k, v in tree_flatten(model.parameters())}
    for path, module in model.named_modules():
        if "scales" not in module:
            continue
        form = (module.group_size, module.bits, module.mode)
        arrays = (module.weight, module.scales, module.get("biases"))
        wide = mx.dequantize(*arrays, *form, dtype=mx.float32)
        values[f"{path}.weight"] = np.array(wide)
        for name in ("scales", "biases"):
            values.pop(f"{path}.{name}", None)
    return values


def largest_loss(got: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> float:
    """Return the largest relative error of a tensor; 0 if all are exact."""
    assert got.keys() == values.keys(), got.keys() ^ values.keys()
    losses = [0.0]
    for path, value in values.items():
        lost = got[path].astype(np.float64) - value
        allowed = _ROUNDED * (np.abs(value) + np.abs(value).max())
        if (np.abs(lost) > allowed).any():
            total = np.square(value, dtype=np.float64).sum()
            losses.append(float(np.sqrt(np.square(lost).sum() / total)))
    return max(losses)


Row = dict[str, Cell]


def run(names: list[str]) -> dict[str, Row]:
    """Convert the architectures without a result, and those with these names."""
    stored = json.loads(CAPSULE.read_text()) if CAPSULE.exists() else {}
    rows = {n: {k: Cell(**c) for k, c in row.items()} for n, row in stored.items()}
    blocks = quantizer()
    for name in FAMILIES:
        if name in rows and not any(part in name for part in names):
            continue
        family = widened(FAMILIES[name])
        rows[name] = {}
        for kind in TYPES:
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.redirect_stdout(io.StringIO()),  # mlx-lm prints
            ):
                rows[name][kind] = convert(family, kind, blocks, Path(folder))
        print(line(name, rows[name]), flush=True)
        made = {n: {k: asdict(c) for k, c in row.items()} for n, row in rows.items()}
        write_text(CAPSULE, json.dumps(made, indent=1) + "\n")
    return {name: rows[name] for name in FAMILIES}


def line(name: str, row: Row) -> str:
    return f"| {name} | " + " | ".join(map(str, row.values())) + " |"


def table(rows: dict[str, Row]) -> str:
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
    parser.add_argument("names", nargs="*", help="parts of names, to convert again")
    names = parser.parse_args().names
    mx.disable_compile()  # else each fused expression takes a run of the C++ compiler
    mx.set_default_device(mx.cpu)
    rows = run(names)
    body = re.compile(f"{BEGIN}.*?{END}", re.DOTALL)
    text = f"{BEGIN}\n\n{table(rows)}\n\n{END}"
    write_text(PAGE, body.sub(lambda _: text, PAGE.read_text()))
    return int(not all(c.right for row in rows.values() for c in row.values()))


if __name__ == "__main__":
    sys.exit(main())
