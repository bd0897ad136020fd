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
def exclusive(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file.

    Args:
        path: The file.
        wait: Whether to wait for another process that has the lock. The file then
            stays; otherwise it is removed afterwards.

    Raises:
        Held: If another process has the lock, and this one does not wait.
        OSError: If the file cannot be made or locked.
    """
    descriptor = _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        if not wait:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(path: Path, how: int) -> int:
    """Return the descriptor of the lock file, which is still at its path."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, how)
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
