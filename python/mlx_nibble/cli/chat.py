"""Talk to a model (mlx_lm.chat, accelerated)."""

from __future__ import annotations

from collections.abc import Sequence

from mlx_nibble.cli.delegate import run_accelerated


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.chat`` with these arguments."""
    run_accelerated("chat", "chat", arguments)
