"""The products to tune: those of a model folder, or of well-known models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_nibble import _native, ops
from mlx_nibble.acceleration import symmetric
from mlx_nibble.bench.machine import device
from mlx_nibble.bench.products import ProductCase
from mlx_nibble.bench.shapes import MODELS
from mlx_nibble.formats import MODES
from mlx_nibble.io.checkpoint import read_checkpoint
from mlx_nibble.machine import tuned_table
from mlx_nibble.machine.tuned_table import LEAVE_TO_MLX, Key
from mlx_nibble.ops import DTYPES

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
"""The largest number of rows of each class that shares a choice."""

# Type of scales and biases in nearly all models of mlx-community.
SCALE_DTYPE = "bfloat16"


@dataclass(frozen=True)
class Problem(ProductCase):
    """A product, with everything that its choice depends on.

    Attributes:
        scale_dtype: Type of scales and biases; ``dtype`` is the type of x alone.
        symmetric: Whether the biases are known to be redundant.
        activations: None or "int8", as the operation takes it.
    """

    scale_dtype: str
    symmetric: bool = False
    activations: str | None = None

    @property
    def scales_dtype(self) -> str:
        """Type of scales and biases."""
        return self.scale_dtype

    @property
    def key(self) -> Key:
        """Key of the product in a table."""
        return Key(**{**asdict(self), "rows": tuned_table.row_class(self.rows)})

    def candidates(self) -> list[str]:
        """Return all candidates, the planner's own choice first and MLX's last."""
        assert _native.ext is not None
        ours = _native.ext.candidates(self.key.shape, self.key.int8)
        return [*ours, LEAVE_TO_MLX]


def default_dtype(scale_dtype: str) -> str:
    """Return the type of activations; on a CPU nibble's commands use float32."""
    return "float32" if device() == "cpu" else scale_dtype


def of_shapes(
    shapes: Iterable[tuple[int, int]],
    rows: Sequence[int],
    dtype: str | None,
    bits: int,
    group_size: int,
    activations: str | None,
    mode: str = "affine",
) -> list[Problem]:
    """Return products of weights [N, K], each with all numbers of rows.

    Raises:
        ValueError: If K is not made of whole groups.
    """
    form = (bits, group_size, dtype or default_dtype(SCALE_DTYPE))
    scale_dtype = SCALE_DTYPE if MODES[mode].stores_biases else "uint8"
    made = [
        Problem(m, N, K, *form, scale_dtype, activations=activations, mode=mode)
        for N, K in dict.fromkeys(shapes)
        for m in rows
    ]
    for problem in made:
        problem.check()
    return made


def default_shapes() -> list[tuple[int, int]]:
    """Return the weights [N, K] of all models of ``nibble bench kernels``."""
    return list(dict.fromkeys(shape for model in MODELS.values() for shape in model))


def of_model(
    folder: Path, rows: Sequence[int], dtype: str | None, activations: str | None
) -> list[Problem]:
    """Return the products of a model folder's quantized matrices.

    Raises:
        ValueError: If it is no model folder, or has no matrix that our kernels support.
    """
    config, tensors = read_checkpoint(folder, "tune")
    found = _matrices(tensors, config.get("quantization") or {}, dtype, activations)
    matrices = list(dict.fromkeys(found))
    if not matrices:
        raise ValueError(
            f"[tune] quantized matrices that our kernels support are required but got "
            f"none in {str(folder)!r}."
        )
    return [replace(matrix, rows=m) for matrix in matrices for m in rows]


def _matrices(
    tensors: dict[str, mx.array],
    quantization: dict[str, Any],
    dtype: str | None,
    activations: str | None,
) -> Iterable[Problem]:
    names = {mx_dtype: name for name, mx_dtype in DTYPES.items()}
    tied = not any(name.endswith("lm_head.weight") for name in tensors)
    seen: dict[tuple, bool] = {}
    for name, scales in tensors.items():
        owner = name.removesuffix(".scales")
        weight, biases = (
            tensors.get(f"{owner}.{part}") for part in ("weight", "biases")
        )
        if owner == name or weight is None or weight.ndim != 2:
            continue
        if owner.endswith("embed_tokens") and not tied:
            continue  # rows are looked up, never multiplied
        form = _format(quantization, owner, weight, scales)
        if form is None:
            continue
        K, bits, group_size, mode = form
        scale_dtype = names.get(scales.dtype, "uint8")
        known = scale_dtype in MODES[mode].scale_dtypes
        if not known or (biases is not None) != MODES[mode].stores_biases:
            continue
        what = (weight.shape[0], K, bits, group_size, mode, scale_dtype)
        if what not in seen:
            # One matrix stands for all of its shape; each layer checks its own later.
            seen[what] = biases is not None and all(
                symmetric.recognise([(scales, biases, bits)])
            )
        # A model whose scales are bytes has activations of bfloat16.
        own = dtype or default_dtype(names.get(scales.dtype, SCALE_DTYPE))
        yield Problem(
            *(1, weight.shape[0], K, bits, group_size, own, scale_dtype),
            mode=mode,
            symmetric=seen[what],
            activations=activations,
        )


def _format(
    quantization: dict[str, Any], owner: str, weight: mx.array, scales: mx.array
) -> tuple[int, int, int, str] | None:
    """Return K, bits, group size and mode; None if no kernel supports them."""
    own = quantization.get(owner)
    settings = own if isinstance(own, dict) else quantization
    group_size = settings.get("group_size", 64)
    if not isinstance(group_size, int) or group_size < 1:
        return None
    K = scales.shape[-1] * group_size
    bits = weight.shape[-1] * 32 // K
    mode = settings.get("mode", "affine")
    gpu = device() != "cpu"
    known = ops.supports(mode, bits, group_size, gpu=gpu)
    return (K, bits, group_size, mode) if known else None
