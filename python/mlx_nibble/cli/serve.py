"""``nibble serve``: mlx-lm's own server, with every model accelerated."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence

from mlx_nibble.cli import complain
from mlx_nibble.cli.delegate import run_accelerated


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.server`` with these arguments, until it is told to end."""
    status = 0
    try:
        run_accelerated("server", "serve", arguments)
    except (BrokenPipeError, KeyboardInterrupt):
        # The reader of --help has enough; or Ctrl-C came before mlx-lm expects it,
        # or a second time.
        pass
    except (ValueError, OSError, RuntimeError) as error:
        # Of an address that is taken, say, mlx-lm learns when its thread that
        # generates runs already: Python would wait for that for ever.
        status = complain("serve", str(error))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near
    logging.shutdown()
    # When Python exits, the thread of MLX's stream that belonged to the server's
    # thread may abort the process: one shutdown of stock mlx_lm.server in three.
    os._exit(status)
