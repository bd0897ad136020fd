"""Writing a text file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write beside ``path``, then rename: readers see the old file or the new one.

    Raises:
        OSError: If the file cannot be written; the old file stays.
    """
    path = Path(path)
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        new.write_text(text)
        os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
