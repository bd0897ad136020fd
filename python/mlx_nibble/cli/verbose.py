"""The option ``--verbose``: the report of each accelerated model, on stderr."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from mlx_nibble import _native

if TYPE_CHECKING:
    from mlx_nibble.acceleration.report import Report


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--verbose``, which :func:`reporter` reads."""
    parser.add_argument(
        "--verbose",
        nargs="?",
        const="",
        metavar="MLX_LM",
        help="print which layers run on our kernels; a value is for mlx-lm's option "
        "of this name",
    )


def upstream_arguments(options: argparse.Namespace) -> list[str]:
    """Return mlx-lm's part of the option: it has a value."""
    return ["--verbose", options.verbose] if options.verbose else []


class Reporter:
    """Prints the report of each model, or one line if layers stay with MLX."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Read the options."""
        self._whole = options.verbose is not None
        if (options.verbose or "").lower() in ("false", "f"):  # as mlx-lm reads it
            self._whole = False

    def __call__(self, report: Report) -> None:
        """Print what the user should know of a report."""
        from mlx_nibble.cli.console import err

        if os.environ.get("MLX_RANK", "0") != "0":  # one of several processes prints
            return
        if self._whole:
            for line in str(report).splitlines():
                err.print(line, soft_wrap=True)
        elif report.kept and _native.reason is None:  # that is said in red
            first = report.kept[0]
            total = len(report.kept) + len(report.swapped) + report.unchanged
            err.print(
                f"mlx-nibble: {len(report.kept)} of {total} quantized layers stay with "
                f"MLX, such as {first.path}: {first.reason}. --verbose counts them.",
                soft_wrap=True,
            )
