"""GGUF files of the user, imported once and kept in the cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlx_nibble._version import __version__
from mlx_nibble.conversion.gguf_import import import_gguf
from mlx_nibble.io.cache import cache_lock, short_digest
from mlx_nibble.io.gguf.parts import part_files
from mlx_nibble.progress import Progress, Tell, silent, untold

_FOLDER = "imported"
# Characters of a folder's name, of up to 4 bytes each; names have at most 255 bytes.
_LONGEST = 50


def imported(file: Path, progress: Progress = silent, tell: Tell = untold) -> Path:
    """Return the folder of a GGUF file as an MLX model.

    The folder is made the first time, and again if the file or the version of
    mlx-nibble has changed. A folder of the file's earlier contents is then removed.

    Args:
        file: The GGUF file, or any part of a split one.
        progress: Function of the step, its bytes so far, and all its bytes.
        tell: Function that is told where the folder is made.

    Raises:
        ValueError: If the file is malformed or not supported.
        OSError: If a file cannot be read or written.
    """
    files = [part.resolve() for part in part_files(file)]
    # The system sets the time of a change (ctime): no program can restore it.
    states = [
        (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
        for s in map(os.stat, files)
    ]
    state = short_digest(repr((states, __version__)))
    with cache_lock(_FOLDER) as cache:
        place = cache / _FOLDER / short_digest(str(files[0]))
        folder = place / state / (files[0].stem.strip(".")[:_LONGEST] or "model")
        if folder.is_dir():  # made whole, then renamed
            return folder
        # Earlier contents, and what killed runs left.
        shutil.rmtree(place, ignore_errors=True)
        tell(f"Importing {file} to {folder}")
        return import_gguf(file, folder, progress=progress).path
