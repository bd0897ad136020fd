"""The option ``--activations`` of every command that runs a model."""

from __future__ import annotations

import argparse

_HELP = (
    "integers that a CPU rounds the activations of products to. int16 loses less than "
    "16-bit floats would; int8 is faster and a little less exact "
    "(docs/reference/numerics.md says how much); default: {}"
)


_CHOICES = ("exact", "int16", "int8")


def add_option(
    parser: argparse.ArgumentParser,
    default: str = "exact",
    choices: tuple[str, ...] = _CHOICES,
) -> None:
    """Add ``--activations``, which :func:`setting` reads."""
    parser.add_argument(
        "--activations",
        choices=choices,
        default=default,
        help=_HELP.format(default),
    )


def setting(args: argparse.Namespace) -> str | None:
    """Return the choice as :func:`mlx_nibble.accelerate` takes it."""
    return None if args.activations == "exact" else args.activations
