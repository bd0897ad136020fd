"""The headers of safetensors files from strangers, checked before MLX reads them.

MLX trusts a header: its sizes and offsets are not compared with the file.
"""

from __future__ import annotations

import os
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


def check_safetensors(path: Path, op: str) -> None:
    """Check that a file is regular, and that its header describes its data.

    Raises:
        ValueError: If not. The error names the file.
        OSError: If it cannot be read.
    """
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
    end = 0
    for name, entry in header.items():
        if name != "__metadata__":
            end = max(end, _end(entry, f"{name!r} of {str(path)!r}", op))
    if end > room - length:
        raise ValueError(
            f"[{op}] {end} bytes of tensors are required in {str(path)!r} but it has "
            f"{room - length}: the file is truncated."
        )


def _end(entry: Any, what: str, op: str) -> int:
    """Return the offset of the first byte after a tensor."""
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
    return end


def _sizes(value: Any) -> bool:
    """Tell whether a value is a list of whole numbers from 0 to 2**63."""
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in value
    )
