"""Talk to a model (mlx_lm.chat, accelerated)."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from mlx_nibble.cli.delegate import run_accelerated
from mlx_nibble.io.cache import cache_dir

_HISTORY = "chat-history"
_LINES = 1000


def main(arguments: Sequence[str]) -> None:
    """Run ``mlx_lm.chat`` with these arguments, until q or the end of the input."""
    with _line_editing(), suppress(EOFError):
        run_accelerated("chat", "chat", arguments)


@contextmanager
def _line_editing() -> Iterator[None]:
    """Let a terminal's lines be edited and recalled, also those of earlier runs."""
    try:
        import readline  # input() uses it from now on
    except ImportError:  # a Python without it
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    file = cache_dir() / _HISTORY
    with suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(_LINES)
    try:
        yield
    finally:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch(mode=0o600)  # what was said is nobody else's concern
            readline.write_history_file(file)
