"""Measure products and models; draw and compare the runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mlx_nibble.cli.commands import Commands, help_text

PARTS = Commands(
    program="nibble bench",
    noun="part",
    prefix="bench_",
    names=("kernels", "model", "plot", "compare"),
    about=help_text("bench"),
)


def main(arguments: Sequence[str]) -> None:
    """Run one part; the exit status is 2 if it does not exist."""
    chosen = PARTS.choose(arguments)
    if isinstance(chosen, int):
        sys.exit(chosen)
    PARTS.load(chosen).main(arguments[1:])
