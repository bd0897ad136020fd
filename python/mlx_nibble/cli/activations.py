"""The option ``--activations`` of every command that runs a model."""

from __future__ import annotations

import argparse

_HELP = (
    "int8: round activations to 8 bits on a CPU, faster and a little less exact "
    "(docs/reference/numerics.md says how much); default: exact"
)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--activations``, which :func:`setting` reads."""
    parser.add_argument(
        "--activations", choices=("exact", "int8"), default="exact", help=_HELP
    )


def setting(args: argparse.Namespace) -> str | None:
    """Return the choice as :func:`mlx_nibble.accelerate` takes it."""
    return None if args.activations == "exact" else args.activations
