"""Options that name quantized formats."""

from __future__ import annotations

import argparse
from itertools import product
from typing import Any

from mlx_nibble import ops
from mlx_nibble.formats import BITS, GROUP_SIZES, MODES, Format
from mlx_nibble.io.config import MODES as MLX_MODES


def add_options(parser: argparse._ActionsContainer, several: bool = False) -> None:
    """Add --mode, --bits and --group-size; :func:`of` reads them."""
    many: dict[str, Any] = {"nargs": "+"} if several else {}
    add = parser.add_argument
    add(
        "--mode",
        choices=MLX_MODES,
        default=["affine"] if several else "affine",
        help="MLX's name of the mode; default: affine",
        **many,
    )
    add(
        "--bits",
        type=int,
        choices=BITS,
        help="of the affine mode; default: 4",
        **many,
    )
    add(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        help="of the affine mode; default: 64",
        **many,
    )


def of(args: argparse.Namespace, op: str, gpu: bool = False) -> list[Format]:
    """Return the formats that a command line names.

    Raises:
        ValueError: If a float mode gets another width or group size than its own, or
            our kernels do not support it on the device.
    """
    found: list[Format] = []
    for mode in _listed(args.mode):
        row = MODES[mode]
        if row.stores_biases:
            widths = _listed(args.bits) or [row.default_bits]
            sizes = _listed(args.group_size) or [row.default_group_size]
            found += [Format(b, g) for b, g in product(widths, sizes)]
            _require_kernels(op, found, gpu)
            continue
        for option in ("bits", "group_size"):
            if getattr(args, option) is not None and "affine" not in _listed(args.mode):
                flag = option.replace("_", "-")
                raise ValueError(
                    f"[{op}] --{flag} is an option of the affine mode but the mode is "
                    f"{mode}, which has one format: leave it out."
                )
        found.append(Format.of_mode(mode))
        _require_kernels(op, found, gpu)
    return found


def _require_kernels(op: str, forms: list[Format], gpu: bool) -> None:
    """Refuse a format that MLX computes on the device."""
    for form in forms:
        mode = MODES[form.mode].mlx_name
        if gpu and not ops.supports(mode, form.bits, form.group_size, gpu=True):
            raise ValueError(
                f"[{op}] a mode with kernels for this GPU is required but got {mode} "
                f"with {form.bits} bits, which MLX computes there."
            )


def _listed(value: object) -> list:
    """Return a value as a list; empty for None."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
