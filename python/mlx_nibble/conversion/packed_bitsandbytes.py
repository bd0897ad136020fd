"""The layouts of bitsandbytes: nf4 and fp4 with their state, and LLM.int8().

Matrices of 4 bits are rows joined and divided into blocks. A level of a table of 16
stands for each weight, times the largest magnitude of its block. Nested states store
these magnitudes in 8 bits, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_layouts import Parts, require_shape
from mlx_nibble.conversion.packed_settings import refuse
from mlx_nibble.io.packed import Unpacked, affine
from mlx_nibble.io.packed_floats import Table
from mlx_nibble.io.stranger import parse_json
from mlx_nibble.io.values import shown

_KINDS = ("nf4", "fp4")
_STATE = "weight.quant_state.bitsandbytes__"
_MAPS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LARGEST_STATE, _LARGEST_BLOCK, _LARGEST_SIZE = 1 << 12, 1 << 16, 2**31 - 1


class BitsAndBytes:
    """The layouts of bitsandbytes."""

    def __init__(self, settings: Mapping[str, Any]):
        """Check the settings."""
        four, eight = (settings.get(f"load_in_{n}bit") is True for n in (4, 8))
        if four == eight:
            refuse("a bitsandbytes checkpoint of either 4 or 8 bits is required")
        self._four = four

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        if not self._four:
            return [n.removesuffix(".SCB") for n in tensors if n.endswith(".SCB")]
        found = [n.partition(f".{_STATE}") for n in tensors]
        return [path for path, middle, kind in found if middle and kind in _KINDS]

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        if not self._four:
            return ("weight", "SCB", "weight_format")
        states = tuple(f"{_STATE}{kind}" for kind in _KINDS)
        return ("weight", *(f"weight.{name}" for name in _MAPS), *states)

    def scales(self, path: str) -> str | None:
        """Return the name of the tensor of scales; None if the form is not affine."""
        return None if self._four else "SCB"

    def read(self, parts: Parts) -> Unpacked | Table:
        """Return a matrix."""
        return _levels(parts) if self._four else _int8(parts)


def _int8(parts: Parts) -> Unpacked:
    """Return a matrix of signed bytes, and of the largest magnitude of each row."""
    codes, tops = parts.integers("weight"), parts.values("SCB", 1)
    if codes.dtype != np.int8:
        raise ValueError(f"must have a weight of signed bytes but it is {codes.dtype}")
    require_shape("SCB", tops, (len(codes),))
    if parts.has("weight_format") and parts.integers("weight_format", 0, 1).any():
        raise ValueError("must have weights in rows but their weight_format is another")
    scales = (tops.astype(np.float64) / 127).astype(np.float32)[:, None]
    zeros = np.full(scales.shape, 128, np.int32)
    unsigned = codes.view(np.uint8) ^ np.uint8(0x80)
    return affine(unsigned, scales, zeros, np.zeros(codes.shape[1], np.int64), 8)


def _levels(parts: Parts) -> Table:
    """Return a matrix of a table of 16 levels."""
    kind = next(kind for kind in _KINDS if parts.has(f"{_STATE}{kind}"))
    state = _state(parts, f"{_STATE}{kind}")
    shape, size = _sizes(state, "shape"), _size(state, "blocksize")
    count, blocks = prod(shape), -(-prod(shape) // size)
    octets = parts.integers("weight", 1, 2)
    if octets.dtype != np.uint8 or octets.size != -(-count // 2):
        raise ValueError(
            f"must have a weight of {-(-count // 2)} bytes but it is {octets.dtype} of "
            f"{octets.size}"
        )
    levels = _vector(parts, "weight.quant_map", 16)
    # The first weight of a byte is in its high half.
    codes = np.stack([octets.ravel() >> 4, octets.ravel() & 15], -1)
    codes = codes.reshape(-1)[:count].reshape(shape)
    with np.errstate(invalid="ignore", over="ignore"):  # refused below
        tops = _magnitudes(parts, state, blocks)
    if not np.isfinite(levels).all() or not np.isfinite(tops).all():
        raise ValueError("must have finite values but some are not")
    return Table(kind, codes, levels, tops, size)


def _magnitudes(parts: Parts, state: Mapping[str, Any], blocks: int) -> np.ndarray:
    """Return the largest magnitude of each block."""
    if not parts.has("weight.nested_absmax"):
        return _vector(parts, "weight.absmax", blocks)
    size, offset = _size(state, "nested_blocksize"), state.get("nested_offset")
    if not isinstance(offset, int | float):
        raise ValueError(f"must have a nested_offset but it is {shown(offset)}")
    codes = parts.integers("weight.absmax", 1)
    require_shape("weight.absmax", codes, (blocks,))
    if codes.dtype != np.uint8:
        raise ValueError(f"must have an absmax of bytes but it is {codes.dtype}")
    levels = _vector(parts, "weight.nested_quant_map", 256)
    tops = _vector(parts, "weight.nested_absmax", -(-blocks // size))
    return levels[codes] * np.repeat(tops, size)[:blocks] + np.float32(offset)


def _vector(parts: Parts, name: str, count: int) -> np.ndarray:
    found = parts.values(name, 1)
    require_shape(name, found, (count,))
    return found


def _state(parts: Parts, name: str) -> Mapping[str, Any]:
    """Return the JSON object that a tensor of bytes holds."""
    octets = parts.integers(name, 1)
    if octets.dtype != np.uint8 or octets.size > _LARGEST_STATE:
        raise ValueError(
            f"must have a {name} of at most {_LARGEST_STATE} bytes but it is "
            f"{octets.dtype} of {octets.size}"
        )
    return parse_json(octets.tobytes(), f"{parts.path}.{name}", "import")


def _size(state: Mapping[str, Any], key: str) -> int:
    return _positive(key, state.get(key), _LARGEST_BLOCK)


def _sizes(state: Mapping[str, Any], key: str) -> tuple[int, ...]:
    found = state.get(key)
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError(f"must have a {key} of two sizes but it is {shown(found)}")
    return tuple(_positive(key, size, _LARGEST_SIZE) for size in found)


def _positive(key: str, value: Any, most: int) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"must have a {key} of 1 to {most} but it is {shown(value)}")
    return value
