"""The user's cache folder, and locks for processes that fill it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_nibble.io.lock import exclusive

# Hexadecimal digits of a digest in a name: 64 bits.
_DIGITS = 16


def cache_dir() -> Path:
    """Return the folder of files that mlx-nibble can make or fetch again.

    It is ``$NIBBLE_CACHE_DIR`` if set. The default is ``~/Library/Caches/mlx-nibble``
    on macOS, and ``$XDG_CACHE_HOME/mlx-nibble`` or ``~/.cache/mlx-nibble`` elsewhere.

    Raises:
        OSError: If the user has no home folder, and the environment names none.
    """
    try:
        if chosen := os.environ.get("NIBBLE_CACHE_DIR"):
            return Path(chosen).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "mlx-nibble"
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG specification says to ignore relative paths.
        return (base if base.is_absolute() else Path.home() / ".cache") / "mlx-nibble"
    except RuntimeError as error:  # a user id without an entry, as in containers
        raise OSError(
            "[cache] a home folder was required but this user has none; set "
            "NIBBLE_CACHE_DIR to a folder."
        ) from error


def short_digest(text: str) -> str:
    """Return the digest of a text as a part of a file's name."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_DIGITS]


@contextmanager
def cache_lock(name: str) -> Iterator[Path]:
    """Hold the lock of one cache entry; another process waits for it.

    Yields:
        The cache folder, which exists.
    """
    folder = cache_dir()
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / f"{name}.lock", wait=True):
        yield folder
