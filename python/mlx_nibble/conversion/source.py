"""The source of a conversion: what it holds, and that it stays as it is."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from mlx_nibble.io.shards import weight_files
from mlx_nibble.progress import Progress, silent

_CHUNK_BYTES = 1 << 20


class Source:
    """The files that a conversion reads.

    Attributes:
        files: The files, in a fixed order.
    """

    def __init__(self, files: Sequence[Path], progress: Progress = silent):
        """Record the state of the files, before any is read.

        Raises:
            OSError: If a file is missing.
        """
        self.files = list(files)
        self._progress = progress
        self._state = _state(self.files)

    @cached_property
    def digest(self) -> str:
        """The hash of names and contents, which takes one pass over the files.

        A size, a time and a header are no proof: a tool that copies a file can restore
        its time, and fine-tuned weights have their model's header.
        """
        return self._hash()

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for i, file in enumerate(self.files):
            self._progress("Reading the source", i, len(self.files))
            content = hashlib.sha256()
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK_BYTES):
                    content.update(chunk)
            digest.update(f"{file.name}\0{content.hexdigest()}\n".encode())
        self._progress("Reading the source", len(self.files), len(self.files))
        return digest.hexdigest()

    def require_unchanged(self) -> None:
        """Check that the files are those that were there at the beginning.

        Raises:
            ValueError: If one has changed.
            OSError: If one is missing.
        """
        now = _state(self.files)
        if now == self._state:
            return
        # A change of a file's links or rights changes its state, too.
        if "digest" in self.__dict__ and self._hash() == self.digest:
            return
        pairs = zip(self.files, self._state, now, strict=True)
        changed = next(file for file, before, after in pairs if before != after)
        raise ValueError(
            "[convert] the source must stay as it is during a conversion but "
            f"'{changed}' has changed: start again."
        )


def weights_of(folder: Path, progress: Progress = silent) -> Source:
    """Return the weights and the configuration of a model folder, which are complete.

    Raises:
        ValueError: If a part of the weights is missing.
        OSError: If a file cannot be read.
    """
    files = weight_files(folder, "convert")
    return Source([*files, folder / "config.json"], progress)


def _state(files: Sequence[Path]) -> list[tuple[int, ...]]:
    stats = [os.stat(file) for file in files]
    return [
        (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats
    ]
