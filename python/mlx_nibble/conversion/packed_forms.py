"""The form of a packed matrix in MLX: exact, or the nearest one, or values.

- Affine codes keep their scales; see :mod:`mlx_nibble.io.packed`.
- Floats in one of MLX's modes keep codes and scales. MLX takes the factor of an nvfp4
  matrix for experts only. The factor of another matrix goes into its scales if they
  hold it exactly.
- All other matrices get the grids of least error, or stay values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mlx_nibble.conversion.packed_experts import is_expert
from mlx_nibble.conversion.values import require_unclipped
from mlx_nibble.formats import Format, Quantized
from mlx_nibble.io.packed import Unpacked, in_mlx_groups
from mlx_nibble.io.packed_floats import Floats, Values
from mlx_nibble.quantize.search import search

# Widths that lose less than 0.5 % of perplexity: docs/results/packed.md.
_NEAREST_BITS = {"nvfp4": 6, "fp8": 8, "nf4": 6, "fp4": 8, "hqq": 8}
_GROUP = 32
# mlx-lm's classes divide this matrix among heads, and would round it again.
_KEPT = ".kv_b_proj"


@dataclass(frozen=True)
class Formed:
    """A packed matrix in MLX's form.

    Attributes:
        matrix: Codes in one of MLX's formats, or values in float32.
        order: Order of its inputs; None if they are in order.
        error: Relative error of the values, root mean square; 0 if none was rounded.
    """

    matrix: Quantized | Floats | np.ndarray
    order: np.ndarray | None = None
    error: float = 0.0


def formed(
    path: str, matrix: Unpacked | Floats | Values, dtype: str, keep: str
) -> Formed:
    """Return the form of a matrix.

    Args:
        path: Its path.
        matrix: The matrix as another tool stores it.
        dtype: Type of scales and biases.
        keep: For a matrix that no form holds exactly: "values" keeps them in full
            precision, "quality" takes a width that loses little.

    Raises:
        ValueError: If a scale is not finite, or groups do not fit.
    """
    if isinstance(matrix, Unpacked):
        return Formed(*in_mlx_groups(matrix, dtype))
    if isinstance(matrix, Floats):
        exact = matrix if is_expert(path) else matrix.folded()
        if exact is not None and not path.endswith(_KEPT):
            return Formed(exact)
        matrix = Values(matrix.mode, matrix.values())
    values = matrix.values
    form = Format(_NEAREST_BITS.get(matrix.kind, 8), _GROUP, dtype)
    if keep == "values" or not form.fits(values.shape[1]) or path.endswith(_KEPT):
        return Formed(values)
    nearest = search(values, form)
    require_unclipped(path, nearest, dtype, float(abs(values).max()))
    total = float(np.square(values, dtype=np.float64).sum())
    lost = nearest.dequantize() - values
    error = float(np.square(lost, dtype=np.float64).sum())
    return Formed(nearest, None, math.sqrt(error / total) if total else 0.0)
