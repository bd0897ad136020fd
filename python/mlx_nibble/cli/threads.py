"""The option ``--threads``: the threads of the CPU kernels."""

from __future__ import annotations

import argparse
import os
import sys

# The extension reads it once, when it is loaded.
_VARIABLE = "NIBBLE_NUM_THREADS"
_MOST = 1024  # also csrc/cpu/thread_pool.cpp


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--threads``, which :func:`require` applies."""
    parser.add_argument(
        "--threads",
        type=_count,
        help=f"threads of our CPU kernels (default: {_VARIABLE}, or the CPUs that the "
        "process may use)",
    )


def require(options: argparse.Namespace) -> None:
    """Start this process again, with as many threads as the command line says."""
    wanted = options.threads
    if wanted is None or os.environ.get(_VARIABLE) == str(wanted):
        return
    os.environ[_VARIABLE] = str(wanted)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(
            f"a number from 1 to {_MOST} is required but got {text!r}"
        )
    return int(text)
