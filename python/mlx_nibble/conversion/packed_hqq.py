"""The layout of HQQ, whose tensors carry the settings of their matrix.

Groups of inputs (axis 1) are affine groups with a zero that is a float. Groups of rows
(axis 0) are none of MLX's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.packed_layouts import Parts, require_shape
from mlx_nibble.io.packed import Unpacked
from mlx_nibble.io.packed_floats import Values
from mlx_nibble.io.values import shown

_SETTINGS = (
    *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype"),
    *("view_as_float", "quant_scale", "quant_zero", "compute_dtype", "offload_meta"),
    *("encoded_state_dict", "stores_quant_config", "channel_wise", "optimize"),
    "round_zero",
)


def _halves(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return the unpacking of bytes whose fields belong to far rows, highest first."""
    shifts = range(8 - bits, -1, -bits)

    def unpack(words: np.ndarray) -> np.ndarray:
        octets = words.astype(np.uint8)
        return np.concatenate([(octets >> s) & ((1 << bits) - 1) for s in shifts])

    return unpack


def _tenths(words: np.ndarray) -> np.ndarray:
    """Unpack words of ten codes of 3 bits."""
    return np.concatenate([(words >> s) & 7 for s in range(27, -1, -3)])


# Name of a packing to the type of its words, codes of a word, and its unpacking.
_PACKINGS: dict[str, tuple[type, int, Callable[[np.ndarray], np.ndarray]]] = {
    "8bit_u8": (np.uint8, 1, np.asarray),
    "4bit_u8": (np.uint8, 2, _halves(4)),
    "2bit_u8": (np.uint8, 4, _halves(2)),
    "1bit_u8": (np.uint8, 8, _halves(1)),
    "3bit_32": (np.int32, 10, _tenths),
}


class HQQ:
    """The layout of HQQ in safetensors, as transformers writes it."""

    def __init__(self, settings: Mapping[str, Any]):
        """Take the settings, which the tensors repeat."""

    def paths(self, tensors: Mapping[str, mx.array]) -> list[str]:
        """Return the paths of all packed matrices."""
        return [n.removesuffix(".W_q") for n in tensors if n.endswith(".W_q")]

    def parts(self, path: str) -> tuple[str, ...]:
        """Return the names of all tensors that a matrix may have."""
        return ("W_q", "scale", "zero", *_SETTINGS)

    def scales(self, path: str) -> str:
        """Return the name of the tensor of scales."""
        return "scale"

    def read(self, parts: Parts) -> Unpacked | Values:
        """Return a matrix."""
        for name in ("quant_scale", "quant_zero", "view_as_float"):
            if parts.has(name) and parts.integers(name, 0, 1).any():
                raise ValueError(f"must be without {name} but is with it")
        shape = parts.integers("shape", 1)
        if shape.shape != (2,) or (shape < 1).any():
            raise ValueError(f"must have a shape of two sizes but it is {shape}")
        rows, inputs = (int(n) for n in shape)
        size, axis = _whole(parts, "group_size"), _whole(parts, "axis")
        bits, count = _whole(parts, "nbits"), rows * inputs
        if not 1 <= bits <= 8 or axis not in (0, 1) or size < 1 or count % size:
            raise ValueError(
                f"must have 1 to 8 bits, an axis of 0 or 1 and groups that divide "
                f"{rows} x {inputs} but has {bits}, {axis} and {size}"
            )
        groups = count // size
        codes = _codes(parts, (groups, size) if axis else (size, groups), bits)
        form = (groups, 1) if axis else (1, groups)
        scales, zeros = parts.values("scale"), parts.values("zero", 0, 1, 2)
        require_shape("scale", scales, form)
        if zeros.size > 1:
            require_shape("zero", zeros, form)
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            biases = -scales * zeros
        if axis and inputs % size == 0:
            per_row = (rows, inputs // size)
            biases = np.broadcast_to(biases, form).reshape(per_row)
            order = np.arange(inputs) // size
            wide = codes.reshape(rows, inputs)
            return Unpacked(wide, scales.reshape(per_row), biases, order, bits)
        values = (codes * scales + biases).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("must have finite values but some are not")
        return Values("hqq", values.reshape(rows, inputs))


def _codes(parts: Parts, shape: tuple[int, int], bits: int) -> np.ndarray:
    """Return the codes of all groups."""
    name = bytes(parts.integers("packing", 1).astype(np.uint8)[:16]).decode("latin-1")
    if name not in _PACKINGS:
        raise ValueError(
            f"must have a packing of {', '.join(_PACKINGS)} but it is {shown(name)}"
        )
    kind, per_word, unpack = _PACKINGS[name]
    words = parts.integers("W_q")
    require_shape("W_q", words, (-(-shape[0] // per_word), shape[1]))
    if words.dtype != kind:
        raise ValueError(f"must have a W_q of {kind.__name__} but it is {words.dtype}")
    codes = unpack(words)[: shape[0]]
    assert prod(codes.shape) == prod(shape)
    if codes.max() >= 1 << bits:
        raise ValueError(f"must have codes of {bits} bits but one is {codes.max()}")
    return codes.astype(np.uint8)


def _whole(parts: Parts, name: str) -> int:
    found = parts.integers(name, 0, 1)
    if found.size != 1:
        raise ValueError(f"must have one {name} but has {found.size}")
    return int(found.reshape(()))
