"""The headers of safetensors files from strangers, checked before MLX reads them.

MLX trusts a header: its sizes and offsets are not compared with the file.
"""

from __future__ import annotations

import os
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from mlx_nibble.io.stranger import open_regular, parse_json

_LENGTH_BYTES = 8
# The largest header that the safetensors package reads, 100 MB, would need 2.5 GB as
# Python objects. A tensor needs about 150 bytes.
_LARGEST_HEADER = 32 << 20
_LARGEST_SIZE = 2**31 - 1  # MLX's sizes are int32
# Types that MLX loads, and their bytes.
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}


# Commands check a folder before they load it. The most files of a model that we know
# are about 200.
_REMEMBERED = 1024


def tensor_names(path: Path, op: str) -> tuple[str, ...]:
    """Check that a header describes its file; return the names of the tensors.

    As in the safetensors package, the tensors must fill the file without holes. The
    header of a file that has not changed is read once.

    Args:
        path: The file.
        op: Name of the operation in errors: ``[op] …``.

    Raises:
        ValueError: If it is no regular file, or not what its header says. The error
            names the file.
        OSError: If it cannot be read.
    """
    with open_regular(path, op) as file:
        s = os.fstat(file.fileno())
    state = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns)
    return _names(path, op, state)


@lru_cache(_REMEMBERED)
def _names(path: Path, op: str, state: tuple[int, ...]) -> tuple[str, ...]:
    with open_regular(path, op) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        room = size - _LENGTH_BYTES
        if length > min(room, _LARGEST_HEADER):
            raise ValueError(
                f"[{op}] a header of at most {max(min(room, _LARGEST_HEADER), 0)} "
                f"bytes is required in {str(path)!r} but it has {length}: the file is "
                "truncated or no safetensors file."
            )
        header = parse_json(file.read(length), str(path), op)
    _check_metadata(header.pop("__metadata__", {}), path, op)
    spans = [
        (*_span(entry, f"{name!r} of {str(path)!r}", op), name)
        for name, entry in header.items()
    ]
    filled = 0
    for start, end, name in sorted(spans):
        if start != filled:
            raise ValueError(
                f"[{op}] tensors without gaps or overlaps are required in "
                f"{str(path)!r} but {name!r} begins at byte {start}, not {filled}."
            )
        filled = end
    if filled != room - length:
        reason = (
            "the file is truncated" if filled > room - length else "remove the rest"
        )
        raise ValueError(
            f"[{op}] {filled} bytes of tensors are required in {str(path)!r} but it "
            f"has {room - length}: {reason}."
        )
    return tuple(header)


def _check_metadata(metadata: Any, path: Path, op: str) -> None:
    found = {} if metadata is None else metadata  # as MLX writes it
    if not isinstance(found, dict) or not all(
        isinstance(value, str) for value in found.values()
    ):
        raise ValueError(
            f"[{op}] texts are required as '__metadata__' of {str(path)!r} but got "
            f"{str(metadata):.80}."
        )


def _span(entry: Any, what: str, op: str) -> tuple[int, int]:
    """Return the offsets of a tensor's first byte, and of the first one after it."""
    found = entry if isinstance(entry, dict) else {}
    shape: Any = found.get("shape")
    offsets: Any = found.get("data_offsets")
    known = isinstance(found.get("dtype"), str) and found["dtype"] in _ITEM_BYTES
    if not known or not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise ValueError(
            f"[{op}] a dtype that MLX has, a shape and two data_offsets are required "
            f"of tensor {what} but got {str(entry):.120}."
        )
    if max(shape, default=0) > _LARGEST_SIZE:
        raise ValueError(
            f"[{op}] sizes below 2**31 are required of tensor {what} but got {shape}."
        )
    start, end = offsets
    if end - start != prod(shape) * _ITEM_BYTES[found["dtype"]]:
        raise ValueError(
            f"[{op}] a tensor {found['dtype']} of shape {shape} was required but the "
            f"data_offsets of {what} are {offsets}."
        )
    return start, end


def _sizes(value: Any) -> bool:
    """Tell whether a value is a list of whole numbers from 0 to 2**63."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
