"""Reading files that may come from strangers: regular, bounded, JSON."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from typing import Any

# CPython frees lists in a time that is not linear in their number: 5 million of them,
# 10 MB of brackets, take 3 s, a million 0.3 s. The largest files that we know are
# tokenizers, with a list for each of 600 000 merges.
MOST_LISTS = 1_000_000


def local_path(name: str) -> str:
    """Return a path; `~/` is the home folder unless there is a folder named `~`."""
    known = os.path.lexists(name) or not name.startswith("~/")
    return name if known else os.path.expanduser(name)


def open_regular(path: str | os.PathLike[str], op: str) -> io.BufferedReader:
    """Open a regular file, or a link to one; never wait for a pipe or a device.

    Raises:
        ValueError: If it is a pipe, a socket or a device.
        OSError: If it cannot be opened, or is a folder.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        raise ValueError(
            f"[{op}] a regular file is required but {os.fspath(path)!r} is not one."
        )
    return open(descriptor, "rb")


def read_json(path: str | os.PathLike[str], op: str, most: int) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        op: Name of the operation in errors: ``[op] …``.
        most: The largest size of the file, in bytes. Parsed JSON needs up to 25 times
            as much.

    Raises:
        ValueError: If it is no regular file, too large, or no JSON object in UTF-8
            without repeated keys, of at most a million lists and objects.
        OSError: If it cannot be read.
    """
    with open_regular(path, op) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(
            f"[{op}] a file of at most {most} bytes is required but "
            f"{os.fspath(path)!r} is larger."
        )
    return parse_json(data, os.fspath(path), op)


def count_lists(data: bytes) -> int:
    """Return an upper bound of a JSON text's lists and objects.

    Brackets inside of strings count too. See :data:`MOST_LISTS`.
    """
    return data.count(b"[") + data.count(b"{")


def parse_json(data: bytes, file: str, op: str) -> dict[str, Any]:
    """Parse a JSON object in UTF-8, without repeated keys.

    Args:
        data: The text.
        file: The file that errors name.
        op: Name of the operation in errors.

    Raises:
        ValueError: If it is none, or has more than a million lists and objects.
    """
    lists = count_lists(data)
    if lists > MOST_LISTS:
        raise ValueError(
            f"[{op}] at most {MOST_LISTS} lists and objects are required in "
            f"{file!r} but got {lists}."
        )
    try:
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"[{op}] a JSON object is required in {file!r} but got: {error}."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(
            f"[{op}] a JSON object is required in {file!r} but got a "
            f"{type(found).__name__}."
        )
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} appears twice")
    return found
