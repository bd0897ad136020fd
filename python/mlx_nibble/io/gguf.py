"""Read GGUF files from strangers.

A GGUF file is a header, key-value metadata, a table of tensors and their data
(the specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
Every length, count, offset, type and alignment is checked before it is used;
whatever is wrong with a file ends in one ``ValueError`` that starts with
``[gguf]``. Tensor data is read, never mapped, so that a file that shrinks while
it is read is an error and not a bus error.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit lengths and was replaced within a month
_DEFAULT_ALIGNMENT = 32
_MAX_KEY_BYTES = 65535  # the specification's limits
_MAX_NAME_BYTES = 64
_MAX_DIMS = 4

# The fewest bytes that an entry can take bound how many a file can hold.
_MIN_METADATA_BYTES = 8 + 1 + 4 + 1  # a key of one byte, a type, a value
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # a name, rank, one size, type, offset

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


@dataclass(frozen=True)
class BlockType:
    """A ggml storage type: ``elements`` values are stored in ``nbytes`` bytes."""

    name: str
    elements: int
    nbytes: int


# ggml's types by number (ggml.h); the gaps are types that ggml has removed.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    9: BlockType("Q8_1", 32, 36),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    15: BlockType("Q8_K", 256, 292),
    16: BlockType("IQ2_XXS", 256, 66),
    17: BlockType("IQ2_XS", 256, 74),
    18: BlockType("IQ3_XXS", 256, 98),
    19: BlockType("IQ1_S", 256, 50),
    20: BlockType("IQ4_NL", 32, 18),
    21: BlockType("IQ3_S", 256, 110),
    22: BlockType("IQ2_S", 256, 82),
    23: BlockType("IQ4_XS", 256, 136),
    24: BlockType("I8", 1, 1),
    25: BlockType("I16", 1, 2),
    26: BlockType("I32", 1, 4),
    27: BlockType("I64", 1, 8),
    28: BlockType("F64", 1, 8),
    29: BlockType("IQ1_M", 256, 56),
    30: BlockType("BF16", 1, 2),
    34: BlockType("TQ1_0", 256, 54),
    35: BlockType("TQ2_0", 256, 66),
    39: BlockType("MXFP4", 32, 17),
}


def fail(message: str) -> NoReturn:
    """Raise the one kind of error that this module knows."""
    raise ValueError(f"[gguf] {message}")


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table.

    Attributes:
        name: As in the file, for example ``blk.0.attn_q.weight``.
        type: How the values are stored.
        shape: Outermost dimension first (GGUF writes it last).
        offset: Of the first byte, from the start of the file.
        nbytes: Bytes of data.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUF:
    """The checked contents of a GGUF file, without the tensors' data.

    Attributes:
        path: The file.
        metadata: Key to value: int, float, bool, str, a list of str, or a
            one-dimensional numpy array.
        tensors: Name to table row, in the file's order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """The raw bytes of a tensor, ``uint8 [nbytes]``.

        Raises:
            ValueError: If the file has become shorter since it was opened.
        """
        info = self.tensors[name]
        data = np.empty(info.nbytes, np.uint8)
        with open(self.path, "rb") as file:
            file.seek(info.offset)
            got = file.readinto(data.data)
        if got != info.nbytes:
            fail(
                f"tensor {name!r} needs {info.nbytes} bytes at {info.offset} "
                f"but the file now ends after {got} of them."
            )
        return data

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The metadata value of ``key``, which must be a ``kind``.

        Args:
            key: A metadata key.
            kind: int, float, bool, str, list or np.ndarray.
            default: Returned when the key is absent; None makes it required.

        Raises:
            ValueError: If the key is absent and has no default, or if its
                value is of another kind.
        """
        value = self.metadata.get(key)
        if value is None:
            if default is None:
                fail(f"metadata must hold {key!r} but it does not.")
            return default
        # bool is an int to Python, but not to GGUF.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            fail(
                f"metadata {key!r} must be of type {kind.__name__} but got "
                f"{type(value).__name__}."
            )
        return value


class _Reader:
    """A cursor that never reads, or allocates, more than the file holds."""

    def __init__(self, file: BinaryIO, size: int):
        self._file = file
        self._size = size
        self.position = 0

    @property
    def remaining(self) -> int:
        return self._size - self.position

    def take(self, count: int, what: str) -> bytes:
        if count > self.remaining:
            fail(
                f"{what} needs {count} bytes at {self.position} but the file "
                f"ends after {self.remaining} of them."
            )
        data = self._file.read(count)
        if len(data) != count:
            fail(f"the file became shorter while {what} was read.")
        self.position += count
        return data

    def u32(self, what: str) -> int:
        return struct.unpack("<I", self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return struct.unpack("<Q", self.take(8, what))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A number of entries that the rest of the file has room for."""
        count = self.u64(what)
        if count > self.remaining // least_bytes:
            fail(
                f"{what} is {count} but the {self.remaining} bytes left have room "
                f"for {self.remaining // least_bytes} at most."
            )
        return count

    def string(self, what: str, limit: int | None = None) -> str:
        length = self.u64(f"the length of {what}")
        if limit is not None and not 0 < length <= limit:
            fail(f"{what} must have 1 to {limit} bytes but has {length}.")
        data = self.take(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            fail(f"{what} must be UTF-8 but got {data[:32]!r} ({error.reason}).")


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Read and check a GGUF file's metadata and tensor table.

    Args:
        path: A GGUF file, version 2 or 3, little endian.

    Returns:
        Its metadata and tensors; ``GGUF.read`` fetches the data of one.

    Raises:
        ValueError: If it is not a regular file or any part of it is malformed.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            fail(f"a regular file is required but {str(path)!r} is not one.")
        reader = _Reader(file, status.st_size)
        tensor_count, metadata_count = _read_header(reader)
        metadata = _read_entries(
            reader, metadata_count, "metadata key", _read_metadata_entry
        )
        alignment = _alignment(metadata)
        table = _read_entries(reader, tensor_count, "tensor", _read_tensor_entry)
        data_start = -(-reader.position // alignment) * alignment
    tensors = {
        name: _place(name, shape, kind, offset, data_start, alignment, status.st_size)
        for name, (shape, kind, offset) in table.items()
    }
    _require_disjoint(tensors)
    return GGUF(path, metadata, tensors)


def _read_header(reader: _Reader) -> tuple[int, int]:
    """Returns the numbers of tensors and of metadata entries."""
    magic = reader.take(4, "the magic number")
    if magic != _MAGIC:
        fail(f"a file must start with {_MAGIC!r} but this one starts with {magic!r}.")
    version = reader.u32("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in _VERSIONS:
            fail("big-endian files are not supported but this is one.")
        fail(f"version 2 or 3 is required but got {version}.")
    tensor_count = reader.count("the number of tensors", _MIN_TENSOR_BYTES)
    metadata_count = reader.count("the number of metadata keys", _MIN_METADATA_BYTES)
    return tensor_count, metadata_count


def _read_entries(
    reader: _Reader,
    count: int,
    what: str,
    read_entry: Callable[[_Reader], tuple[str, Any]],
) -> dict[str, Any]:
    entries = {}
    for _ in range(count):
        name, value = read_entry(reader)
        if name in entries:
            fail(f"each {what} must be unique but {name!r} appears twice.")
        entries[name] = value
    return entries


def _read_metadata_entry(reader: _Reader) -> tuple[str, Any]:
    key = reader.string("a metadata key", _MAX_KEY_BYTES)
    kind = reader.u32(f"the type of metadata {key!r}")
    if kind != _ARRAY:
        return key, _read_value(reader, kind, key)
    kind = reader.u32(f"the element type of metadata {key!r}")
    if kind == _STRING:
        count = reader.count(f"the length of metadata {key!r}", 8)
        what = f"a string of metadata {key!r}"
        return key, [reader.string(what) for _ in range(count)]
    dtype = _scalar_dtype(kind, key)
    count = reader.count(f"the length of metadata {key!r}", dtype.itemsize)
    data = reader.take(count * dtype.itemsize, f"metadata {key!r}")
    if kind == _BOOL and data.strip(b"\0\1"):
        fail(f"booleans must be 0 or 1 but metadata {key!r} holds other bytes.")
    return key, np.frombuffer(data, dtype)


def _read_value(reader: _Reader, kind: int, key: str) -> Any:
    if kind == _STRING:
        return reader.string(f"metadata {key!r}")
    dtype = _scalar_dtype(kind, key)
    data = reader.take(dtype.itemsize, f"metadata {key!r}")
    if kind == _BOOL and data not in (b"\0", b"\1"):
        fail(f"a boolean must be 0 or 1 but metadata {key!r} is {data[0]}.")
    return np.frombuffer(data, dtype)[0].item()


def _scalar_dtype(kind: int, key: str) -> np.dtype:
    if kind not in _SCALARS:
        fail(f"metadata {key!r} has a type that is not supported: {kind}.")
    return np.dtype(_SCALARS[kind])


def _alignment(metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < 8
        or value & (value - 1)
    ):
        fail(f"general.alignment must be a power of two from 8 but got {value!r}.")
    return value


def _read_tensor_entry(reader: _Reader) -> tuple[str, tuple]:
    """Returns the name, and (shape outermost first, type number, offset)."""
    name = reader.string("a tensor's name", _MAX_NAME_BYTES)
    rank = reader.u32(f"the rank of tensor {name!r}")
    if not 1 <= rank <= _MAX_DIMS:
        fail(f"tensor {name!r} must have 1 to {_MAX_DIMS} dimensions but has {rank}.")
    sizes = [reader.u64(f"the shape of tensor {name!r}") for _ in range(rank)]
    kind = reader.u32(f"the type of tensor {name!r}")
    offset = reader.u64(f"the offset of tensor {name!r}")
    return name, (tuple(reversed(sizes)), kind, offset)


def _place(
    name: str,
    shape: tuple[int, ...],
    kind: int,
    offset: int,
    data_start: int,
    alignment: int,
    file_size: int,
) -> TensorInfo:
    if kind not in BLOCK_TYPES:
        fail(f"tensor {name!r} has a type that ggml does not define: {kind}.")
    block = BLOCK_TYPES[kind]
    if min(shape) < 1:
        fail(f"tensor {name!r} must not be empty but its shape is {shape}.")
    if shape[-1] % block.elements:
        fail(
            f"the rows of tensor {name!r} must be multiples of {block.elements} "
            f"({block.name}) but have {shape[-1]} values."
        )
    if offset % alignment:
        fail(
            f"tensor {name!r} must be aligned to {alignment} bytes but its offset "
            f"is {offset}."
        )
    # Python's integers do not overflow, so the product is what it says.
    nbytes = prod(shape) // block.elements * block.nbytes
    start = data_start + offset
    if start + nbytes > file_size:
        fail(
            f"tensor {name!r} {shape} {block.name} needs {nbytes} bytes at {start} "
            f"but the file has {file_size}: it is truncated or corrupt."
        )
    return TensorInfo(name, block, shape, start, nbytes)


def _require_disjoint(tensors: dict[str, TensorInfo]) -> None:
    """A small file must not describe a large model by sharing its bytes."""
    in_order = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in zip(in_order, in_order[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            fail(f"tensors {before.name!r} and {after.name!r} overlap.")
