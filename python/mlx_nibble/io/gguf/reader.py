"""Read GGUF files from strangers.

A GGUF file is a header, key-value metadata, a table of tensors and their data
(the specification: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
Every length, count, offset, type and alignment is checked before it is used.
Every fault of a file ends in one ``ValueError`` that starts with ``[gguf]``.
Tensor data is read, never mapped: a file that shrinks meanwhile is an error and not
a bus error.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mlx_nibble.io.gguf.block_types import BLOCK_TYPES, BlockType
from mlx_nibble.io.gguf.cursor import Cursor
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.metadata import (
    MIN_ENTRY_BYTES,
    data_alignment,
    read_metadata,
)
from mlx_nibble.io.stranger import open_regular

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit lengths and was replaced within a month
_MAX_NAME_BYTES = 64  # the specification's limits
_MAX_DIMS = 4
# The fewest bytes of a table row bound how many tensors a file can have.
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 8 + 4 + 8  # a name, rank, one size, type, offset


@dataclass(frozen=True)
class TensorInfo:
    """One row of the tensor table.

    Attributes:
        file: The file that has the data.
        name: The name in the file, for example ``blk.0.attn_q.weight``.
        type: How the values are stored.
        shape: Outermost dimension first (GGUF writes it last).
        offset: Position of the first byte, from the start of the file.
        nbytes: Bytes of data.
    """

    file: Path
    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUF:
    """The checked contents of a GGUF model, without the tensors' data.

    Attributes:
        metadata: Key to value: int, float, bool, str, a list of str, or a
            one-dimensional numpy array.
        tensors: Name to table row, in the file's order.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def read(self, name: str) -> np.ndarray:
        """Return the raw bytes of a tensor, ``uint8 [nbytes]``.

        Raises:
            ValueError: If the file has become shorter since it was opened.
        """
        info = self.tensors[name]
        data = np.empty(info.nbytes, np.uint8)
        with open_regular(info.file, "gguf") as file:
            file.seek(info.offset)
            got = file.readinto(data.data)
        if got != info.nbytes:
            fail(
                f"tensor {name!r} needs {info.nbytes} bytes at {info.offset} "
                f"but the file now ends after {got} of them."
            )
        return data

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """Return the metadata value of ``key``, which must be a ``kind``.

        Args:
            key: A metadata key.
            kind: int, float, bool, str, list or np.ndarray.
            default: Value for an absent key; None makes the key required.

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


def is_gguf(source: str) -> bool:
    """Tell whether a source is taken for a GGUF file, whatever its name."""
    path = Path(source)
    return path.is_file() or (source.endswith(".gguf") and not path.is_dir())


def starts_as_gguf(file: Path) -> bool:
    """Tell whether a regular file begins as GGUF files do."""
    with file.open("rb") as opened:
        return opened.read(len(_MAGIC)) == _MAGIC


def read_gguf(path: str | os.PathLike[str]) -> GGUF:
    """Read and check a GGUF file's metadata and tensor table.

    Args:
        path: A GGUF file, version 2 or 3, little endian.

    Returns:
        Its metadata and tensors; ``GGUF.read`` reads the data of one.

    Raises:
        ValueError: If it is not a regular file or any part of it is malformed.
        OSError: If it cannot be opened.
    """
    path = Path(path)
    with open_regular(path, "gguf") as file:
        status = os.fstat(file.fileno())
        cursor = Cursor(file, status.st_size)
        tensor_count, metadata_count = _read_header(cursor)
        metadata = read_metadata(cursor, metadata_count)
        alignment = data_alignment(metadata)
        table = cursor.entries(tensor_count, "tensor", _read_tensor_entry)
        data_start = -(-cursor.position // alignment) * alignment
    tensors = {
        name: _place(
            path, name, shape, kind, offset, data_start, alignment, status.st_size
        )
        for name, (shape, kind, offset) in table.items()
    }
    _require_disjoint(tensors)
    return GGUF(metadata, tensors)


def _read_header(cursor: Cursor) -> tuple[int, int]:
    """Return the numbers of tensors and of metadata entries."""
    magic = cursor.take(4, "the magic number")
    if magic != _MAGIC:
        fail(f"a file must start with {_MAGIC!r} but this one starts with {magic!r}.")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        if swapped in _VERSIONS:
            fail("a little-endian file is required but this one is big-endian.")
        fail(f"version 2 or 3 is required but got {version}.")
    tensor_count = cursor.count("the number of tensors", _MIN_TENSOR_BYTES)
    metadata_count = cursor.count("the number of metadata keys", MIN_ENTRY_BYTES)
    return tensor_count, metadata_count


def _read_tensor_entry(cursor: Cursor) -> tuple[str, tuple]:
    """Return the name, and (shape outermost first, type number, offset)."""
    name = cursor.string("a tensor's name", _MAX_NAME_BYTES)
    rank = cursor.u32(f"the rank of tensor {name!r}")
    if not 1 <= rank <= _MAX_DIMS:
        fail(f"tensor {name!r} must have 1 to {_MAX_DIMS} dimensions but has {rank}.")
    sizes = [cursor.u64(f"the shape of tensor {name!r}") for _ in range(rank)]
    kind = cursor.u32(f"the type of tensor {name!r}")
    offset = cursor.u64(f"the offset of tensor {name!r}")
    return name, (tuple(reversed(sizes)), kind, offset)


def _place(
    file: Path,
    name: str,
    shape: tuple[int, ...],
    kind: int,
    offset: int,
    data_start: int,
    alignment: int,
    file_size: int,
) -> TensorInfo:
    if kind not in BLOCK_TYPES:
        fail(f"tensor {name!r} must be of a type that ggml defines but got {kind}.")
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
    # Python's integers do not overflow: this product is exact.
    nbytes = prod(shape) // block.elements * block.nbytes
    start = data_start + offset
    if start + nbytes > file_size:
        fail(
            f"tensor {name!r} {shape} {block.name} needs {nbytes} bytes at {start} "
            f"but the file has {file_size}: it is truncated or corrupt."
        )
    return TensorInfo(file, name, block, shape, start, nbytes)


def _require_disjoint(tensors: dict[str, TensorInfo]) -> None:
    """Refuse tensors that overlap: a small file could describe a large model."""
    in_order = sorted(tensors.values(), key=lambda t: t.offset)
    for before, after in zip(in_order, in_order[1:], strict=False):
        if before.offset + before.nbytes > after.offset:
            fail(f"{before.name!r} and {after.name!r} must not overlap but do.")
