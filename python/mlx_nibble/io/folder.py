"""Making a folder by one process at a time, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_nibble.io.atomic import write_text
from mlx_nibble.io.lock import Held, exclusive

# In the work folder: the inode of the finished folder, just before its renaming.
_FINISHED = "finished"


def work_folder(path: Path) -> Path:
    """Return the folder of unfinished work beside an output folder."""
    return path.with_name(f".{path.name}.nibble")


@dataclass(frozen=True)
class Reserved:
    """An output folder that this process alone makes.

    Attributes:
        path: The folder; it does not exist yet.
        op: Name of the operation in errors: ``[op] …``.
    """

    path: Path
    op: str

    @property
    def work(self) -> Path:
        """The folder of unfinished work, which a later run continues."""
        return work_folder(self.path)

    def require_absent(self, why: str = "") -> None:
        """Check that nothing has the output's name.

        Raises:
            ValueError: If something has it.
        """
        if os.path.lexists(self.path):
            raise ValueError(
                f"[{self.op}] the output must not exist yet but {str(self.path)!r} "
                f"does{why}: remove it, or name another."
            )

    def remove_leftovers(self) -> None:
        """Remove all that killed runs left and that no run continues.

        Raises:
            ValueError: If an earlier run was killed after it had made the output.
        """
        partial = re.compile(re.escape(f".{self.path.name}.partial-") + r"\w+")
        for entry in os.scandir(self.path.parent):
            if partial.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
        if self._is_finished():
            shutil.rmtree(self.work)
            self.require_absent(", which an earlier run has finished")

    def _is_finished(self) -> bool:
        try:
            inode = int((self.work / _FINISHED).read_text())
            return inode == self.path.stat().st_ino
        except (OSError, ValueError):
            return False


@contextmanager
def reserved(path: str | os.PathLike[str], op: str) -> Iterator[Reserved]:
    """Let this process alone make a folder, and remove what killed runs left of it.

    On success the folder of unfinished work is removed. After an error it stays, and
    the next run continues it.

    Args:
        path: The folder to make; its parents are made too.
        op: Name of the operation in errors: ``[op] …``.

    Raises:
        ValueError: If ``path`` exists already, or another process is making it.
        OSError: If its parent cannot be written.
    """
    path = Path(os.path.abspath(path))
    # The same folder by another spelling has the same lock.
    place = Reserved(path.parent.resolve() / path.name, op)
    if not place.work.is_dir():
        place.require_absent()
    lock = place.path.with_name(f".{place.path.name}.lock")
    with _parents(place.path.parent):
        try:
            with exclusive(lock):
                place.remove_leftovers()
                place.require_absent()
                yield place
                shutil.rmtree(place.work, ignore_errors=True)
        except Held as error:
            raise ValueError(
                f"[{op}] one process at a time may make {str(place.path)!r} but "
                f"process {error} is making it: wait for it, or name another output."
            ) from None


@contextmanager
def filling(place: Reserved) -> Iterator[Path]:
    """Fill a folder beside a reserved output, and rename it when it is complete.

    Any exception, a full disk and Ctrl-C among them, removes the written files. A
    kill leaves a folder named ``.NAME.partial-…``, which the next run removes.

    Yields:
        The folder to write to.

    Raises:
        ValueError: If the output exists now.
        OSError: If the folder cannot be written.
    """
    path = place.path
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    try:
        yield partial
        for file in partial.rglob("*"):
            flush(file)
        partial.chmod(0o777 & ~_umask())  # mkdtemp made it private
        if place.work.is_dir():
            write_text(place.work / _FINISHED, str(partial.stat().st_ino))
        place.require_absent()
        partial.rename(path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def new_folder(path: str | os.PathLike[str], op: str) -> Iterator[Path]:
    """Reserve a folder, then fill it: :func:`reserved` and :func:`filling`."""
    with reserved(path, op) as place, filling(place) as folder:
        yield folder


@contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; remove the new ones after an error."""
    new = [f for f in (folder, *folder.parents) if not f.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):  # not empty: it holds unfinished work
            for made in new:
                made.rmdir()
        raise


def flush(path: Path) -> None:
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
