"""The tensors of a GGUF file, decoded part by part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlx_nibble.formats import Quantized, grouped
from mlx_nibble.io.gguf.block_types import SUPPORTED, Decoded
from mlx_nibble.io.gguf.blocks import Mxfp4, mxfp4_values
from mlx_nibble.io.gguf.errors import fail
from mlx_nibble.io.gguf.reader import GGUF, TensorInfo

# A part of a tensor: its float32 copies take a few hundred megabytes at most.
_CHUNK_VALUES = 1 << 24


def read_rows(file: GGUF, name: str, most: int = _CHUNK_VALUES) -> Iterator[Decoded]:
    """Decode one tensor, some rows at a time.

    Args:
        file: A file that ``read_gguf`` returned.
        name: The tensor's name; its type is one of ``SUPPORTED``.
        most: The most values of a part, unless a row has more.

    Returns:
        Parts `[rows, K]`: codes and scales, or values in float32 or float16 (BF16
        widens to float32).

    Raises:
        ValueError: If the type is not supported, or if a scale is not finite.
    """
    info = file.tensors[name]
    kind = info.type
    if kind.decode is None:
        fail(
            f"a tensor of type {', '.join(SUPPORTED)} is required but {name!r} is of "
            f"type {kind.name}."
        )
    inputs = info.shape[-1]
    count = inputs // kind.elements
    blocks = file.read(name).reshape(-1, count, kind.nbytes)
    step = max(1, most // inputs)
    for start in range(0, len(blocks), step):
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            part = kind.decode(blocks[start : start + step])
        _require_finite(info, part)
        yield part


def read_values(file: GGUF, name: str) -> np.ndarray:
    """Return the values of a tensor, each of them exact, in its shape.

    Raises:
        ValueError: If the type is not supported, or if a scale is not finite.
    """
    parts = [values_of(part) for part in read_rows(file, name)]
    return np.concatenate(parts).reshape(file.tensors[name].shape)


def values_of(part: Decoded) -> np.ndarray:
    """Return the values of a part of a tensor, rounded once to float32."""
    if isinstance(part, Mxfp4):
        return mxfp4_values(part)
    if isinstance(part, Quantized):
        scales, biases = (
            a.astype(np.float64)[..., None] for a in (part.scales, part.biases)
        )
        codes = grouped(part.codes, part.group_size)
        return (scales * codes + biases).astype(np.float32).reshape(part.codes.shape)
    return part


def _require_finite(info: TensorInfo, part: Decoded) -> None:
    """Check scales and biases; an E8M0 scale of 255 is no number."""
    if isinstance(part, Mxfp4):
        finite = part.scales.max() < 255
    elif isinstance(part, Quantized):
        finite = np.isfinite(part.scales).all() and np.isfinite(part.biases).all()
    else:
        finite = info.type.elements == 1 or np.isfinite(part).all()
    if not finite:
        fail(
            f"tensor {info.name!r} ({info.type.name}) must have finite scales but some "
            "are not."
        )
