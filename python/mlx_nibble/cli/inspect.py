"""``nibble inspect``: what a model takes in memory, and would in other formats."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from mlx_nibble import footprint
from mlx_nibble.cli.console import out
from mlx_nibble.footprint import Part

_WHAT_IF = ("32", "16", "8:64", "6:64", "5:64", "4:32", "4:64", "4:128", "3:64")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nibble inspect",
        description="Count the bytes of a model: codes, scales and biases, KV cache, "
        "activations. A folder that holds a config.json alone will do.",
    )
    parser.add_argument("model", metavar="MODEL", help="an MLX model folder")
    parser.add_argument(
        "--context", type=int, default=4096, help="tokens in the KV cache (4096)"
    )
    parser.add_argument(
        "--what-if",
        nargs="*",
        metavar="BITS[:GROUP]",
        type=_format,
        help="count other formats too: 4:64 is 4 bits in groups of 64, 16 a half "
        f"type (default: {' '.join(_WHAT_IF)})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    return parser


def _format(text: str) -> tuple[int, int | None]:
    match = re.fullmatch(r"(?:(16|32)|([1-6]|8):(32|64|128))", text)
    if not match:
        raise argparse.ArgumentTypeError(
            f"{text!r}: 16, 32, or BITS:GROUP with BITS of 1 to 6 or 8 and GROUP of "
            "32, 64 or 128"
        )
    plain, bits, group = match.groups()
    return (int(plain), None) if plain else (int(bits), int(group))


def main(arguments: Sequence[str]) -> None:
    """Parse, count, print."""
    parser = _parser()
    args = parser.parse_args(arguments)
    if args.context < 1:
        parser.error("--context must be at least 1")
    formats = args.what_if
    if formats == []:
        formats = [_format(text) for text in _WHAT_IF]
    folder = Path(args.model)
    if not (folder / "config.json").is_file():
        raise ValueError(f"[inspect] {args.model!r} must be a folder with config.json.")
    from mlx_nibble import lm

    model, config = lm.load_lazily(folder)
    found = footprint.parts(model)
    result = _summary(found, config, args.context)
    result["what_if"] = [
        _what_if(found, bits, group, result) for bits, group in formats or []
    ]
    if args.json:
        print(json.dumps(result | {"parts": [asdict(p) for p in found]}, indent=2))
    else:
        _print(found, result)


def _summary(found: list[Part], config: dict[str, Any], context: int) -> dict[str, Any]:
    value_bytes = 2
    weights = footprint.total_bytes(found)
    cache = footprint.cache_bytes(config, context, value_bytes)
    activations = footprint.activation_bytes(config, context, value_bytes)
    total = weights + (cache or 0) + (activations or 0)
    return {
        "weights": sum(part.weights for part in found),
        "bits_per_weight": footprint.bits_per_weight(found),
        "value_bytes": sum(part.value_bytes for part in found),
        "scale_bytes": sum(part.scale_bytes for part in found),
        "context": context,
        "cache_bytes": cache,
        "activation_bytes": activations,
        "total_bytes": total,
        "smallest_mac_gb": footprint.smallest_mac(total),
    }


def _what_if(
    found: list[Part], bits: int, group: int | None, now: dict[str, Any]
) -> dict[str, Any]:
    other = [footprint.requantized(part, bits, group) for part in found]
    weights = footprint.total_bytes(other)
    running = (now["cache_bytes"] or 0) + (now["activation_bytes"] or 0)
    return {
        "bits": bits,
        "group_size": group,
        "kept": sum(p.is_matrix and not footprint.divides(p, group) for p in found),
        "bits_per_weight": footprint.bits_per_weight(other),
        "value_bytes": sum(part.value_bytes for part in other),
        "scale_bytes": sum(part.scale_bytes for part in other),
        "smallest_mac_gb": footprint.smallest_mac(weights + running),
    }


def _print(found: list[Part], result: dict[str, Any]) -> None:
    out.print(_parts_table(found))
    known = {
        "codes and plain values": result["value_bytes"],
        "scales and biases": result["scale_bytes"],
        f"KV cache of {result['context']} tokens, half type": result["cache_bytes"],
        "activations of a prompt step, about": result["activation_bytes"],
        "all together": result["total_bytes"],
    }
    table = Table(box=None, pad_edge=False, show_header=False)
    for label, nbytes in known.items():
        table.add_row(label, "unknown" if nbytes is None else _size(nbytes))
    out.print()
    out.print(table)
    out.print(
        f"\n{result['weights'] / 1e6:.1f} M weights, {result['bits_per_weight']:.3f} "
        f"bits each; {_mac(result['smallest_mac_gb'])}"
    )
    if result["what_if"]:
        out.print()
        out.print(_what_if_table(result["what_if"]))


def _parts_table(found: list[Part]) -> Table:
    """Equal modules of the layers share a row."""
    rows: dict[tuple[Any, ...], list[Part]] = {}
    for part in found:
        name = re.sub(r"\.\d+\.", ".*.", part.path)
        rows.setdefault((name, part.shape, part.bits, part.group_size), []).append(part)
    table = Table(box=None, pad_edge=False)
    table.add_column("module", no_wrap=True)
    for heading in ("count", "shape", "format", "bits/weight", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (name, shape, bits, group), alike in rows.items():
        table.add_row(
            name,
            str(len(alike)),
            "×".join(map(str, shape)),
            f"{bits} bits" + (f", group {group}" if group else ""),
            f"{footprint.bits_per_weight(alike):.2f}",
            _size(footprint.total_bytes(alike)),
        )
    return table


def _what_if_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("what if", no_wrap=True)
    for heading in ("bits/weight", "values", "scales and biases", "together", "fits"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        group = row["group_size"]
        fits = row["smallest_mac_gb"]
        table.add_row(
            f"{row['bits']} bits"
            + (f", group {group}" if group else "")
            + (f" ({row['kept']} matrices cannot)" if row["kept"] else ""),
            f"{row['bits_per_weight']:.2f}",
            _size(row["value_bytes"]),
            _size(row["scale_bytes"]),
            _size(row["value_bytes"] + row["scale_bytes"]),
            f"{fits} GB" if fits else "—",
        )
    return table


def _mac(size: int | None) -> str:
    if size is None:
        return "too much for the GPU of a Mac with 64 GB"
    return f"fits the GPU's share of a Mac with {size} GB"


def _size(nbytes: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.2f} {unit}"
    return f"{nbytes} B"
