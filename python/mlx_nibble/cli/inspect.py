"""Count the bytes of a model, as it is and in other formats.

Prints the bytes of weights, scales, biases, KV cache and activations, and the Macs that
can hold them. Only file headers are read, also those of a model on the Hub.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_nibble.cli.commands import parser as command_parser
from mlx_nibble.cli.console import filled, out
from mlx_nibble.cli.hub import hub_errors, reach_hub
from mlx_nibble.cli.models import is_hub_name
from mlx_nibble.conversion.packed_import import is_packed
from mlx_nibble.conversion.packed_preview import Preview, preview
from mlx_nibble.evaluation.gguf_inventory import read_gguf_inventory
from mlx_nibble.evaluation.inventory import read_inventory
from mlx_nibble.evaluation.memory import SIZES_GB, Inventory, by_layer, what_if
from mlx_nibble.formats import FLOAT_MODES, Format
from mlx_nibble.io.stranger import local_path
from mlx_nibble.machine import tuned_table
from mlx_nibble.quantize.recipes import RECIPES

_COUNT = re.compile(r"(\d+(?:\.\d+)?)([MBT])", re.IGNORECASE)
_UNITS = {"M": 1e6, "B": 1e9, "T": 1e12}
_GB = 1e9


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("inspect")
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="model folder, GGUF file or Hub name; or a number of weights: 7B",
    )
    add("--context", type=int, default=4096, help="tokens of KV cache; default: 4096")
    add("--layers", action="store_true", help="list the layers")
    add("--tensors", action="store_true", help="list every tensor")
    add(
        "--what-if",
        metavar="FORMAT",
        help="BITS, BITS:GROUP, a mode of floats (mxfp4, nvfp4, mxfp8) or the name of "
        "a recipe: count as if converted to it",
    )
    add("--json", action="store_true", help="print the result for machines")
    return parser


def main(arguments: Sequence[str]) -> None:
    """Parse, count, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.context < 0:
        parser.error("--context must be at least 0")
    if count := _COUNT.fullmatch(args.model):
        weights = float(count[1]) * _UNITS[count[2].upper()]
        _print_formats(weights, args.json)
        return
    path = Path(local_path(args.model))
    gguf = path.is_file()
    packed = preview(path) if path.is_dir() and is_packed(path, "inspect") else None
    inventory = packed.inventory if packed else _read(args.model)
    if args.what_if:
        inventory = what_if(inventory, _plan(inventory, args.what_if, gguf))
    if args.json:
        more = {"packed": asdict(packed, dict_factory=_facts)} if packed else {}
        print(json.dumps(_summary(inventory, args.context) | more))
        return
    if packed:
        _print_packed(packed, args.model)
    if args.layers:
        _print_layers(inventory)
    if args.tensors:
        _print_tensors(inventory)
    _print(inventory, args.context)


def _read(model: str) -> Inventory:
    """Count the tensors of a folder, a file or a repository of the Hub."""
    path = Path(local_path(model))
    if path.is_file():
        return read_gguf_inventory(path)
    if os.path.lexists(path) or not is_hub_name(model):
        return read_inventory(path)
    from mlx_nibble.evaluation.hub_inventory import read_hub_inventory

    reach_hub()
    with hub_errors("inspect"):
        return read_hub_inventory(model)


def _plan(inventory: Inventory, stated: str, gguf: bool) -> dict[str, Format]:
    # mlx-lm quantizes weights of two dimensions and more.
    shapes = {
        row.path.removesuffix(".weight"): row.shape
        for row in inventory.rows
        if len(row.shape) > 1
    }
    # The names of a GGUF file's matrices say nothing to a recipe.
    if stated in RECIPES and (stated == "uniform" or not gguf):
        plan = RECIPES[stated](shapes, Format())
    elif stated in FLOAT_MODES:
        plan = RECIPES["uniform"](shapes, Format.of_mode(stated))
    else:
        bits, _, group = stated.partition(":")
        if not bits.isdigit() or not (group or "64").isdigit():
            raise ValueError(
                "[inspect] --what-if must be BITS, BITS:GROUP, one of "
                f"{FLOAT_MODES} or, for a folder, one of {tuple(RECIPES)} but got "
                f"{stated!r}."
            )
        plan = RECIPES["uniform"](shapes, Format(int(bits), int(group or 64)))
    names = {row.path.removesuffix(".weight"): row.path for row in inventory.rows}
    return {names[path]: form for path, form in plan.items()}


def _summary(inventory: Inventory, context: int) -> dict[str, Any]:
    return {
        "parameters": inventory.parameters,
        "parameters_of_matrices": sum(r.parameters for r in inventory.rows if r.scales),
        "nbytes": inventory.nbytes,
        "bits_per_weight": inventory.bits_per_weight,
        "weights": sum(row.weights for row in inventory.rows),
        "scales": sum(row.scales for row in inventory.rows),
        "biases": sum(row.biases for row in inventory.rows),
        "kv_cache": context * inventory.kv_bytes_per_token,
        "activations": inventory.activation_bytes,
        "context": context,
        "total": inventory.total(context),
        "fits_gb": {gb: inventory.fits(context, gb) for gb in SIZES_GB},
        "tuned": _tuned(inventory),
        "tensors": [
            {"path": r.path, "shape": r.shape, "nbytes": r.nbytes, "format": r.label}
            for r in inventory.rows
        ],
    }


def _facts(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if name != "inventory"}


def _print_packed(packed: Preview, model: str) -> None:
    """Print what an import would write."""
    out.print(
        f"Packed by {packed.tool}. Below is the folder that nibble convert "
        f"{shlex.quote(model)} OUT writes.",
        soft_wrap=True,
    )
    cells = []
    for kind in packed.kinds:
        values = f"{100 * kind.error:.2f} % off" if kind.error else "exact"
        values = ", ".join(filter(None, [values, kind.note]))
        cells.append([kind.name, str(kind.count), kind.becomes, values])
    header = ["packed matrices", "number", "become", "values"]
    out.print(filled(header, cells))


def _print_layers(inventory: Inventory) -> None:
    cells = []
    for name, rows in by_layer(inventory).items():
        matrices = [row.label for row in rows if row.bits is not None] or ["plain"]
        weights, nbytes = (
            sum(row.parameters for row in rows),
            sum(row.nbytes for row in rows),
        )
        counts = [f"{n} x {label}" for label, n in sorted(Counter(matrices).items())]
        bits = f"{8 * nbytes / max(weights, 1):.3f}"
        cells.append([name, ", ".join(counts), f"{weights:,}", f"{nbytes:,}", bits])
    header = ["layer", "formats", "weights", "bytes", "bits per weight"]
    out.print(filled(header, cells, text_columns=2))


def _print_tensors(inventory: Inventory) -> None:
    cells = []
    for row in inventory.rows:
        shape = " x ".join(map(str, row.shape))
        bits = f"{8 * row.nbytes / max(row.parameters, 1):.3f}"
        cells.append([row.path, row.label, shape, f"{row.nbytes:,}", bits])
    header = ["tensor", "format", "shape", "bytes", "bits per weight"]
    out.print(filled(header, cells, text_columns=2))


def _print(inventory: Inventory, context: int) -> None:
    s = _summary(inventory, context)
    labels = (
        ("weights", "weights"),
        ("scales", "scales"),
        ("biases", "biases"),
        (f"KV cache, {context} tokens in half precision", "kv_cache"),
        ("activations of a 2048-token prefill (estimate)", "activations"),
        ("all", "total"),
    )
    rows = [[label, f"{s[name]:,}"] for label, name in labels]
    out.print(filled(["", "bytes"], rows))
    out.print(
        f"{s['parameters'] / 1e6:.1f} M weights, {s['bits_per_weight']:.3f} bits each"
    )
    fits = [f"{gb} GB {'yes' if ok else 'no'}" for gb, ok in s["fits_gb"].items()]
    out.print(f"fits a Mac with (three quarters of it for the GPU): {', '.join(fits)}")
    if s["tuned"]:
        out.print(
            f"{s['tuned']} matrices are multiplied as nibble tune found fastest on "
            "this machine: nibble tune --show"
        )


def _tuned(inventory: Inventory) -> int:
    """Return the number of matrices that nibble tune has tuned on this machine."""
    chosen = {
        ((key.N, key.K), f"{key.bits}-bit g{key.group_size}")
        for key, choice in tuned_table.of_tune(tuned_table.load()).items()
        if choice.name is not None
    }
    return sum((row.shape, row.label) in chosen for row in inventory.rows)


def _print_formats(weights: float, as_json: bool) -> None:
    rows: list[tuple[str, float, float]] = [
        ("fp32", weights * 4, 0.0),
        ("fp16", weights * 2, 0.0),
    ]
    for bits in (8, 4):
        for group in (128, 64, 32):
            pairs = weights / group * 4
            rows.append((f"int{bits}, groups of {group}", weights * bits / 8, pairs))
    if as_json:
        names = ("format", "weights", "scales_and_biases")
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
        return
    cells = [
        [label, *(f"{n / _GB:.2f} GB" for n in (codes, pairs, codes + pairs))]
        for label, codes, pairs in rows
    ]
    out.print(filled(["format", "weights", "scales and biases", "together"], cells))
