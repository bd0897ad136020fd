"""A lock file that the system frees when its process dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Held(Exception):
    """Another process has the lock; the argument is its number, if it is known."""


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, and remove it afterwards.

    Raises:
        Held: If another process has the lock.
        OSError: If the file cannot be made or locked.
    """
    descriptor = _locked(path)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            path.unlink()
        os.close(descriptor)


def _locked(path: Path) -> int:
    """Return the descriptor of the lock file, which is still at its path."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last owner may have removed the file after we opened it.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    return descriptor
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode(errors="replace")
            os.close(descriptor)
            raise Held(owner) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
