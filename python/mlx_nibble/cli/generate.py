"""Complete a prompt (mlx_lm.generate, accelerated)."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_nibble.cli.delegate import run_accelerated


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.generate`` with these arguments."""
    run_accelerated("generate", "generate", arguments)
