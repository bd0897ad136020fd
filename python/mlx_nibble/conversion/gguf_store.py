"""One tensor of a GGUF file as MLX stores it: exact, rounded once, or the nearest form.

- Types with groups of 32 keep their codes. Scales and biases are rounded if the asked
  type has fewer bits than they need.
- Types with groups of 16, which MLX lacks, get the grid of least error in groups of 32,
  or stay values.
- MXFP4 keeps its codes and scales in MLX's mode of that name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nibble.conversion.gguf_architectures import Place
from mlx_nibble.conversion.values import require_finite, require_unclipped
from mlx_nibble.formats import Format, Quantized, round_to
from mlx_nibble.io.gguf.block_types import Decoded
from mlx_nibble.io.gguf.blocks import Mxfp4
from mlx_nibble.io.gguf.reader import GGUF
from mlx_nibble.io.gguf.tensors import read_rows, values_of
from mlx_nibble.quantize.search import search

_GROUP = 32
# Widths that lose less than 0.5 % of perplexity: docs/results/gguf.md.
_NEAREST_BITS = {"Q2_K": 6, "Q3_K": 6, "Q6_K": 8}
_MXFP4 = Format.of_mode("mxfp4")


@dataclass(frozen=True)
class Stored:
    """A tensor in MLX's form.

    Attributes:
        kind: ggml's name of its type in the file.
        arrays: Last name of each array (weight, scales, biases) to the array.
        settings: Its entry in the quantization of config.json; None for values.
        error: Relative error of the values, root mean square; 0 if they are exact.
    """

    kind: str
    arrays: dict[str, np.ndarray]
    settings: dict[str, Any] | None
    error: float


class Exact:
    """Types of scales and values that are exact for all tensors seen so far.

    Attributes:
        dtypes: The types, smallest first; float32 is always among them.
    """

    def __init__(self) -> None:
        """Begin with all types."""
        self.dtypes = ["float16", "bfloat16", "float32"]

    def see(self, values: np.ndarray) -> None:
        """Drop the types that round a value."""
        for dtype in self.dtypes[:-1]:
            wide = values.astype(np.float32)
            if not np.array_equal(round_to(wide, dtype), wide, equal_nan=True):
                self.dtypes.remove(dtype)


def exact_dtype(file: GGUF, names: Iterable[tuple[str, Place]], keep: str) -> str:
    """Return the smallest type that is exact for all scales, biases and plain values.

    Tensors that get a new grid have no part in it. Vectors are read first, for they
    are small, and those of most models need float32.
    """
    exact = Exact()
    for name, place in sorted(names, key=lambda item: file.tensors[item[0]].nbytes):
        if len(exact.dtypes) == 1:
            break
        if keep == "quality" and file.tensors[name].type.name in _NEAREST_BITS:
            continue
        for part in read_rows(file, name):
            if isinstance(part, Quantized) and _is_quantizable(place):
                exact.see(part.scales)
                exact.see(part.biases)
            elif not isinstance(part, Mxfp4):
                exact.see(_changed(values_of(part), place))
    return exact.dtypes[0]


def store(file: GGUF, name: str, place: Place, dtype: str, keep: str) -> Stored:
    """Return one tensor in MLX's form, with its rows in mlx-lm's order.

    Args:
        file: The file.
        name: Name of the tensor.
        place: Its place in the model.
        dtype: Type of scales, biases and values.
        keep: For a tensor that no quantized form holds exactly: "values" keeps them
            in full precision, "quality" takes a width that loses little.

    Raises:
        ValueError: If the tensor's type is not supported, or a scale is not finite.
    """
    info = file.tensors[name]
    parts, error, total = [], 0.0, 0.0
    settings: dict[str, Any] | None = None
    for part in read_rows(file, name):
        arrays, settings, lost = _part(part, info.type.name, place, dtype, keep)
        parts.append(arrays)
        if lost is not None:
            error += float(np.square(lost, dtype=np.float64).sum())
            total += float(np.square(values_of(part), dtype=np.float64).sum())
    joined = {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}
    leading = (1,) if place.row else info.shape[:-1]
    shaped = {key: a.reshape(*leading, a.shape[-1]) for key, a in joined.items()}
    if len(info.shape) == 1 and not place.row:
        shaped = {key: a.reshape(info.shape) for key, a in joined.items()}
    relative = math.sqrt(error / total) if total else 0.0
    return Stored(info.type.name, shaped, settings, relative)


def unrotate(stored: Stored, heads: int) -> Stored:
    """Return a tensor with its rows in mlx-lm's order.

    llama.cpp's converter reorders the rows of the q and k projections, so that the two
    halves that rotary embedding pairs lie side by side. Only rows (output channels)
    move, hence packed weights are reordered without unpacking.
    """

    def reorder(rows: np.ndarray) -> np.ndarray:
        pairs = rows.reshape(heads, len(rows) // heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)

    arrays = {key: reorder(array) for key, array in stored.arrays.items()}
    return Stored(stored.kind, arrays, stored.settings, stored.error)


def _part(
    part: Decoded, kind: str, place: Place, dtype: str, keep: str
) -> tuple[dict[str, np.ndarray], dict[str, Any] | None, np.ndarray | None]:
    """Return arrays, settings, and the error of each value; None if all are exact."""
    if _is_quantizable(place):
        if isinstance(part, Mxfp4):
            return {"weight": part.words, "scales": part.scales}, _MXFP4.config, None
        if isinstance(part, Quantized):
            stored = _rounded(part, dtype, place.path)
            lost = None
            if stored is not part:
                lost = values_of(stored) - values_of(part)
            return _arrays(stored), Format(part.bits, _GROUP).config, lost
        if kind in _NEAREST_BITS and keep == "quality":
            form = Format(_NEAREST_BITS[kind], _GROUP, dtype)
            stored = search(part, form)
            require_unclipped(place.path, stored, dtype, float(abs(part).max()))
            return _arrays(stored), form.config, stored.dequantize() - part
    values = _changed(values_of(part), place)
    stored = round_to(values, dtype)
    same = np.array_equal(stored, values, equal_nan=True)
    return {"weight": values}, None, None if same else stored - values


def _rounded(part: Quantized, dtype: str, path: str) -> Quantized:
    """Return the matrix with rounded scales; the matrix itself if none changes."""
    require_finite(f"{path} (scales)", mx.array(part.scales), dtype)
    require_finite(f"{path} (biases)", mx.array(part.biases), dtype)
    scales, biases = round_to(part.scales, dtype), round_to(part.biases, dtype)
    if np.array_equal(scales, part.scales) and np.array_equal(biases, part.biases):
        return part
    return Quantized(part.codes, scales, biases, part.bits)


def _arrays(stored: Quantized) -> dict[str, np.ndarray]:
    return {
        "weight": stored.words(),
        "scales": stored.scales,
        "biases": stored.biases,
    }


def _changed(values: np.ndarray, place: Place) -> np.ndarray:
    return values.astype(np.float32) - 1 if place.plus_one else values


def _is_quantizable(place: Place) -> bool:
    """Return whether the parameter is the weight of a module that MLX quantizes."""
    return len(place.shape) > 1 and not place.plain and place.path.endswith(".weight")
