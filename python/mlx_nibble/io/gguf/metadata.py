"""The metadata of a GGUF file: keys, and values of the types that GGUF has."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_nibble.io.gguf.cursor import Cursor
from mlx_nibble.io.gguf.errors import fail

_MAX_KEY_BYTES = 65535  # the specification's limit
# The fewest bytes of an entry bound how many entries a file can have.
MIN_ENTRY_BYTES = 8 + 1 + 4 + 1  # a key of one byte, a type, a value

_DEFAULT_ALIGNMENT = 32

_SCALARS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_BOOL, _STRING, _ARRAY = 7, 8, 9


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """Read `count` keys and values.

    Returns:
        Key to int, float, bool, str, a list of str, or a one-dimensional array.

    Raises:
        ValueError: If an entry is malformed, or a key appears twice.
    """
    return cursor.entries(count, "metadata key", _read_entry)


def data_alignment(metadata: dict[str, Any]) -> int:
    """Return the alignment of the tensors' data, in bytes.

    Raises:
        ValueError: If it is not a power of two from 8.
    """
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < 8
        or value & (value - 1)
    ):
        fail(f"general.alignment must be a power of two from 8 but got {value!r}.")
    return value


def _read_entry(cursor: Cursor) -> tuple[str, Any]:
    key = cursor.string("a metadata key", _MAX_KEY_BYTES)
    kind = cursor.u32(f"the type of metadata {key!r}")
    if kind != _ARRAY:
        return key, _read_value(cursor, kind, key)
    kind = cursor.u32(f"the element type of metadata {key!r}")
    if kind == _STRING:
        count = cursor.count(f"the length of metadata {key!r}", 8)
        what = f"a string of metadata {key!r}"
        return key, [cursor.string(what) for _ in range(count)]
    dtype = _scalar_dtype(kind, key)
    count = cursor.count(f"the length of metadata {key!r}", dtype.itemsize)
    data = cursor.take(count * dtype.itemsize, f"metadata {key!r}")
    if kind == _BOOL and data.strip(b"\0\1"):
        fail(f"booleans must be 0 or 1 but metadata {key!r} has other bytes.")
    return key, np.frombuffer(data, dtype)


def _read_value(cursor: Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.string(f"metadata {key!r}")
    dtype = _scalar_dtype(kind, key)
    data = cursor.take(dtype.itemsize, f"metadata {key!r}")
    if kind == _BOOL and data not in (b"\0", b"\1"):
        fail(f"a boolean must be 0 or 1 but metadata {key!r} is {data[0]}.")
    return np.frombuffer(data, dtype)[0].item()


def _scalar_dtype(kind: int, key: str) -> np.dtype:
    if kind not in _SCALARS:
        fail(
            f"the type of metadata {key!r} must be one of {tuple(_SCALARS)} but got "
            f"{kind}."
        )
    return np.dtype(_SCALARS[kind])
