"""A reading position in a GGUF file, bounded by the size of the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, BinaryIO

from mlx_nibble.io.gguf.errors import fail


class Cursor:
    """A position that never reads, or allocates, more than the file has left.

    Every method takes a description of the value, which errors name.

    Attributes:
        position: Offset of the next byte.
    """

    def __init__(self, file: BinaryIO, size: int):
        """Start at the first byte of a file of `size` bytes."""
        self._file = file
        self._size = size
        self.position = 0

    @property
    def remaining(self) -> int:
        """Bytes between the position and the end of the file."""
        return self._size - self.position

    def take(self, count: int, what: str) -> bytes:
        """Read `count` bytes."""
        if count > self.remaining:
            fail(
                f"{what} needs {count} bytes at {self.position} but the file "
                f"ends after {self.remaining} of them."
            )
        data = self._file.read(count)
        if len(data) != count:
            fail(f"the file must stay whole but became shorter while {what} was read.")
        self.position += count
        return data

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit number."""
        return struct.unpack("<I", self.take(4, what))[0]

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit number."""
        return struct.unpack("<Q", self.take(8, what))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """Read a number of entries that the rest of the file has room for."""
        count = self.u64(what)
        if count > self.remaining // least_bytes:
            fail(
                f"{what} must be at most {self.remaining // least_bytes}, for which "
                f"the {self.remaining} bytes left have room, but is {count}."
            )
        return count

    def string(self, what: str, limit: int | None = None) -> str:
        """Read UTF-8 text, of 1 to `limit` bytes if there is a limit."""
        length = self.u64(f"the length of {what}")
        if limit is not None and not 0 < length <= limit:
            fail(f"{what} must have 1 to {limit} bytes but has {length}.")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            fail(f"{what} must be UTF-8 but got {data[:32]!r} ({error.reason}).")

    def entries(
        self, count: int, what: str, read_entry: Callable[[Cursor], tuple[str, Any]]
    ) -> dict[str, Any]:
        """Read `count` pairs of a unique name and a value."""
        entries = {}
        for _ in range(count):
            name, value = read_entry(self)
            if name in entries:
                fail(f"each {what} must be unique but {name!r} appears twice.")
            entries[name] = value
        return entries
