"""Answer OpenAI-style requests over HTTP (mlx_lm.server, accelerated)."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import ModuleType

from mlx_nibble.cli import complain
from mlx_nibble.cli.delegate import run_accelerated
from mlx_nibble.lm.serving import policy


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.server`` with these arguments, until it is told to end."""
    status = 0
    try:
        run_accelerated("server", "serve", arguments, policy.add_options, _checked)
    except (BrokenPipeError, KeyboardInterrupt):
        # The reader of --help has enough. Or Ctrl-C came before mlx-lm expects it, or a
        # second time.
        pass
    except (ValueError, OSError, RuntimeError) as error:
        # An address in use, for example, is reported while mlx-lm's thread that
        # generates runs already. Python would wait for that thread forever.
        status = complain("serve", str(error))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends now
    logging.shutdown()
    # At Python's exit, the thread of the MLX stream that belonged to the server's
    # thread may abort the process: one shutdown of stock mlx_lm.server in three.
    os._exit(status)


def _checked(ours: argparse.Namespace, module: ModuleType) -> AbstractContextManager:
    from mlx_nibble.lm.serving.expected import require

    require(module)
    from mlx_nibble.lm.serving.run import checked_serving

    return checked_serving(policy.from_options(ours), module)
