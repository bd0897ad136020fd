"""Making a folder whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(path: str | os.PathLike[str], op: str) -> Iterator[Path]:
    """Fill a folder beside ``path``, and rename it to ``path`` when it is complete.

    Any exception, a full disk and Ctrl-C among them, removes the written files. A
    kill leaves at most a folder named ``.NAME.partial-…`` behind.

    Args:
        path: The folder to make; its parents are made too.
        op: Name of the operation in errors: ``[op] …``.

    Yields:
        The folder to write to.

    Raises:
        ValueError: If ``path`` exists already.
        OSError: If the folder cannot be written.
    """
    path = Path(path)
    _require_absent(path, op)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield partial
        for file in partial.iterdir():
            _flush(file)
        partial.chmod(0o777 & ~_umask())  # mkdtemp made it private
        _require_absent(path, op)
        partial.rename(path)
        _flush(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_absent(path: Path, op: str) -> None:
    if os.path.lexists(path):
        raise ValueError(
            f"[{op}] the output must not exist yet but {str(path)!r} does: remove "
            "it, or name another."
        )


def _flush(path: Path) -> None:
    """Write to the disk, so that a power cut leaves no renamed empty files."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
