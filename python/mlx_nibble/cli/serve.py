"""``nibble serve``: mlx-lm's own server, with every model accelerated."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from mlx_nibble.cli.delegate import run_accelerated


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.server`` with these arguments, until it is told to end."""
    run_accelerated("server", "serve", arguments)
    logging.shutdown()
    # When Python exits, the thread of MLX's stream that belonged to the server's
    # thread may abort the process: one shutdown of stock mlx_lm.server in three.
    os._exit(0)
