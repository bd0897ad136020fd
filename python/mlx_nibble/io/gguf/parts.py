"""A GGUF model in several files, as `llama-gguf-split` cuts it.

Each part has a name that ends with `-00001-of-00003.gguf`, a table of its own tensors,
and the metadata `split.no`, `split.count` and `split.tensors.count`. The first part has
all other metadata. Any part stands for the whole model.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF, read_gguf

_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE | re.DOTALL)


def part_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files of the model that a file belongs to, in order.

    Args:
        path: A whole GGUF file, or any part of a model.

    Raises:
        ValueError: If the file is malformed, or a part is missing.
        OSError: If the file cannot be opened.
    """
    path = Path(path)
    count, number = _split(read_gguf(path))
    if count == 1:
        return [path]
    name = _NAME.fullmatch(path.name)
    if name is None or (int(name[2]), int(name[3])) != (number + 1, count):
        fail(
            f"part {number + 1} of {count} must have a name that ends with "
            f"-{number + 1:05}-of-{count:05}.gguf but is {path.name!r}: give all parts "
            "the names that they had."
        )
    files = []
    for i in range(1, count + 1):
        files.append(path.with_name(f"{name[1]}-{i:05}-of-{name[3]}{name[4]}"))
        if not files[-1].is_file():
            fail(
                f"all {count} parts of a split model are required but "
                f"{files[-1].name!r} is missing in '{path.parent}'."
            )
    return files


def read_parts(files: Sequence[Path]) -> GGUF:
    """Read and check the metadata and tensor tables of all files of a model.

    Args:
        files: The files, from :func:`part_files`.

    Raises:
        ValueError: If a file is malformed, or the parts do not belong together.
        OSError: If a file cannot be opened.
    """
    parts = [read_gguf(file) for file in files]
    first, tensors = parts[0], {}
    for number, part in enumerate(parts):
        if _split(part) != (len(parts), number):
            fail(
                f"part {number + 1} of {len(parts)} is required but "
                f"{files[number].name!r} is another."
            )
        if twice := tensors.keys() & part.tensors.keys():
            fail(f"each tensor must be in one part but {min(twice)!r} is in two.")
        tensors |= part.tensors
    stated = first.metadata.get("split.tensors.count", len(tensors))
    if stated != len(tensors):
        fail(f"the parts must have {stated} tensors together but have {len(tensors)}.")
    return GGUF(first.metadata, tensors)


def _split(file: GGUF) -> tuple[int, int]:
    """Return the number of parts, and the number of this part from 0."""
    count = file.get("split.count", int, 1) or 1
    number = file.get("split.no", int, 0)
    if not 0 <= number < count:
        fail(f"split.no must be from 0 to {count - 1} but is {number}.")
    return count, number
