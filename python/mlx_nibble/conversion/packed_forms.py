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
from mlx_nibble.formats import GROUP_SIZES, Format, Quantized, round_to
from mlx_nibble.io.packed import Unpacked, in_mlx_groups
from mlx_nibble.io.packed_floats import Floats, Table, Values
from mlx_nibble.quantize.rules import minmax
from mlx_nibble.quantize.search import search

# Widths and group sizes that lose less than 0.5 % of perplexity:
# docs/results/packed.md.
_NEAREST = {
    "nvfp4": (8, 64),
    "fp8": (8, 64),
    "hqq": (8, 64),
    "nf4": (8, 64),
    "fp4": (5, 64),
}
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
    path: str, matrix: Unpacked | Floats | Table | Values, dtype: str, keep: str
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
        matrix = Values(_kind(matrix), matrix.values())
    values = matrix.values
    bits, size = _NEAREST[matrix.kind]
    form = Format(bits, size, dtype).fitted(values.shape[1])
    if keep == "values" or form is None or path.endswith(_KEPT):
        return Formed(values)
    if isinstance(matrix, Table) and matrix.size % form.group_size == 0:
        nearest = _on_one_grid(matrix, form)
    else:
        nearest = minmax(values, form)
    require_unclipped(path, nearest, dtype, float(abs(values).max()))
    total = float(np.square(values, dtype=np.float64).sum())
    lost = nearest.dequantize() - values
    error = float(np.square(lost, dtype=np.float64).sum())
    return Formed(nearest, None, math.sqrt(error / total) if total else 0.0)


def _kind(matrix: Floats) -> str:
    return "fp8" if matrix.bits == 8 else "nvfp4"


def _on_one_grid(matrix: Table, form: Format) -> Quantized:
    """Return a matrix whose levels lie on one grid, which is that of least error.

    The levels are searched once, as a group of their own. Blocks scale the grid.
    """
    levels = np.resize(matrix.levels, GROUP_SIZES[0])
    grid = search(levels[None], Format(form.bits, GROUP_SIZES[0], "float32"))
    rows, inputs = matrix.codes.shape
    per_row = np.arange(rows * inputs // form.group_size) * form.group_size
    tops = matrix.scales[per_row // matrix.size].reshape(rows, -1)
    return Quantized(
        grid.codes[0][matrix.codes],
        round_to(tops * grid.scales[0, 0], form.scale_dtype),
        round_to(tops * grid.biases[0, 0], form.scale_dtype),
        form.bits,
    )
